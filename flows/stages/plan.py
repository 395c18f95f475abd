"""The stage that finds out whether a task has to train, and why; and which of those that do train together."""

from collections.abc import Collection, Mapping, Sequence

from flows.stages.context import Context
from flows.stages.lengths import build_text, check_lengths
from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.models.base import prepare_base
from ptpipeline.models.chat import digest_chat
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.base import Record, digest_of
from ptpipeline.records.data import Snapshot
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.storage.keys import manifest_key
from ptpipeline.task.task import Task
from ptpipeline.tuning.key import ENGINE_VERSION, compute_training_key, digest_start

UNCHANGED = "unchanged"
FORCED = "forced"
GANG_ROWS = 250_000  # train and dev rows that one gang holds in memory as tokens: about 1 GB of 100 tokens each
_UNKNOWN_SECONDS = 60.0  # of a training if no task of the night has trained before


class Plan(Record):
    """Whether a task has to train, and why.

    `trained` says that it is trained already, under its training key. `reason` is `unchanged`, `forced`, or what
    differs from the last training: `first training`, `new rows`, `recipe changed`, `base changed`, `engine changed`.
    `rows` is how many train and dev rows there are, `seconds` what the last training took of its gang, None if there
    was none.
    """

    task: str
    base_model: str
    snapshot: str
    training_key: str
    trained: bool
    reason: str
    rows: int = 0
    seconds: float | None = None


def plan(context: Context, task: Task, snapshot: Snapshot, force: bool = False) -> Plan:
    """Find out whether anything that training depends on changed since it last ran; with `force` it trains anyhow."""
    base = prepare_base(task.base_model, context.settings)
    start = digest_start(task, context.registry.store)
    chat = digest_chat(base.files.read_chat_template())
    keys = [compute_training_key(task, snapshot, ref.fingerprint, start, chat) for ref in base.known]
    known = next((key for key in keys if find_trained(context, task.name, key) is not None), None)
    key, trained = known or keys[0], known is not None and not force
    last = context.registry.ledger.last_tuned(task.name)
    fingerprints = {ref.fingerprint for ref in base.known}
    reason = UNCHANGED if trained else FORCED if known else find_changes(context, task, snapshot, fingerprints)
    context.report(f"{task.name}: {'does not train' if trained else 'trains'}: {reason}")
    if not trained:
        check_lengths(context, task, snapshot, build_text(context, task), snapshot.splits())
    return Plan(
        task=task.name,
        base_model=task.base_model,
        snapshot=snapshot.digest,
        training_key=key,
        trained=trained,
        reason=reason,
        rows=snapshot.train.rows + min(snapshot.dev.rows, task.tune.dev_rows),
        seconds=(last.cost.seconds if last.cost else last.seconds) if last else None,
    )


def find_changes(context: Context, task: Task, snapshot: Snapshot, fingerprints: Collection[str]) -> str:
    """Return in what the task differs from how it last trained; `fingerprints` are those of its base model today."""
    last = context.registry.ledger.last_tuned(task.name)
    if last is None:
        return "first training"
    registry = context.registry
    try:
        manifest = read_artifact(registry.store, task.name, last.digest).manifest
    except (NotFound, ArtifactError):
        return "the last prompt's bytes are gone or altered"
    before = registry.ledger.snapshot(task.name, last.snapshot)
    rows = (before.train.digest, before.dev.digest) if before else None
    changes = {
        "new rows": rows != (snapshot.train.digest, snapshot.dev.digest),
        "recipe changed": manifest.recipe != task.recipe_digest(),
        "base changed": manifest.base_model.fingerprint not in fingerprints,
        "engine changed": manifest.engine_version != ENGINE_VERSION,
    }
    changed = [name for name, differs in changes.items() if differs]
    return ", ".join(changed) or "its start, metric, dev rows or chat template changed"


def find_trained(context: Context, task: str, key: str) -> TunedPrompt | None:
    """Return what was trained under that key, if its bytes are stored."""
    tuned = context.registry.ledger.tuned(task, key)
    if tuned is None or not context.registry.store.exists(manifest_key(task, tuned.digest)):
        return None
    return tuned


# ---------------------------------------------------------------- gangs


def identify(plans: Sequence[Plan]) -> str:
    """Return the digest of which tasks train together, and to what."""
    return digest_of({plan.task: plan.training_key for plan in plans})


def group(plans: Sequence[Plan], open_gangs: Mapping[str, str], parts: int = 1) -> list[list[Plan]]:
    """Return the gangs of the plans that train: those of one base, whose rows fit into memory together.

    A gang whose training began and did not end (`open_gangs`, by task) stays as it is: only so it goes on from its
    checkpoint. The rest makes about `parts` gangs in all, which take equally long by what each task took the last time.
    """
    fresh = sorted((plan for plan in plans if not plan.trained), key=lambda plan: (plan.base_model, plan.task))
    begun: dict[str, list[Plan]] = {}
    for plan in fresh:
        if plan.task in open_gangs:
            begun.setdefault(open_gangs[plan.task], []).append(plan)
    resumed = [gang for digest, gang in begun.items() if identify(gang) == digest]
    taken = {plan.task for gang in resumed for plan in gang}
    bases: dict[str, list[Plan]] = {}
    for plan in fresh:
        if plan.task not in taken:
            bases.setdefault(plan.base_model, []).append(plan)
    known = [plan.seconds for plan in fresh if plan.seconds is not None]
    usual = sum(known) / len(known) if known else _UNKNOWN_SECONDS
    seconds = {plan.task: usual if plan.seconds is None else plan.seconds for plan in fresh}
    total = sum(seconds[plan.task] for of_base in bases.values() for plan in of_base) or 1.0
    gangs = resumed
    for of_base in bases.values():
        share = sum(seconds[plan.task] for plan in of_base) / total
        rows = sum(plan.rows for plan in of_base)
        gangs += _divide(of_base, seconds, max(round(parts * share), -(-rows // GANG_ROWS), 1))
    return gangs


def _divide(plans: Sequence[Plan], seconds: Mapping[str, float], count: int) -> list[list[Plan]]:
    """Return the plans in at most `count` gangs of about equal duration: the longest first, each to the shortest gang
    (LPT).
    """
    gangs: list[list[Plan]] = [[] for _ in range(count)]
    for plan in sorted(plans, key=lambda plan: (-seconds[plan.task], plan.task)):
        shortest = min(gangs, key=lambda gang: sum(seconds[each.task] for each in gang))
        shortest.append(plan)
    return [sorted(gang, key=lambda plan: plan.task) for gang in gangs if gang]
