"""The stages that make a candidate: share, train. What was trained already is found under its training key."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import stamina

from flows.stages.context import MACHINE, Context, checkout_commit
from flows.stages.ingest import ingest
from flows.stages.plan import FORCED, Plan, find_trained
from ptpipeline.errors import PtpError, SettingsError, Terminal, TrainingError, Transient
from ptpipeline.models.base import prepare_base
from ptpipeline.models.chat import digest_chat
from ptpipeline.records.base import Record
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.records.versions import Promotion, PromptVersion
from ptpipeline.task.folder import find_task, load_sources
from ptpipeline.task.recipe import CURRENT
from registry.card.card import Provenance
from registry.failpoints import reached
from registry.ledger.gang import working_on
from registry.ledger.secret import CHECKPOINTS, take_secret
from registry.versions.commit import Cause
from registry.versions.promotion import point
from registry.versions.publish import register, stage

if TYPE_CHECKING:
    from ptpipeline.tuning.checkpoint import Checkpoints
    from ptpipeline.tuning.multitask import Sources
    from ptpipeline.tuning.tune import TrainedTask


# ---------------------------------------------------------------- shared prompts


def share(context: Context, name: str) -> Promotion:
    """Return the promotion of the shared prompt's current version, which trains again if its sources' rows, recipe,
    base or engine changed.
    """
    with working_on(context.registry.ledger.database, [name]):
        version = register(
            context.registry,
            Provenance(tuned=_train_shared(context, name), report=None, verdict=None, commit=checkout_commit()),
        )
    return name_current(context, name, version)


def name_current(context: Context, name: str, version: PromptVersion) -> Promotion:
    """Let the alias name the version of a shared prompt; if a person moved it away from that version, it stays where it
    is.
    """
    history = context.registry.ledger.history(name, CURRENT)
    if history and history[-1].actor != MACHINE and version.number in {row.version for row in history}:
        number, head = version.number, history[-1]
        context.report(
            f"{name}: {CURRENT} stays at version {head.version}, where {head.actor} moved it; `ptp rollback {name} "
            f"--alias {CURRENT} --to {number} --reason ...` moves it to version {number}"
        )
        return history[-1]
    return point(context.registry, version, Cause(actor=MACHINE, reason="its sources were trained"), CURRENT)


def _train_shared(context: Context, name: str) -> TunedPrompt:
    from ptpipeline.tuning.multitask import Sources, compute_shared_key
    from ptpipeline.tuning.tune import TaskData

    declared, tasks = load_sources(context.settings.tasks, name)
    sources = Sources(name, declared, [TaskData(task, ingest(context, task)) for task in tasks])
    base = prepare_base(declared.base_model, context.settings)
    chat = digest_chat(base.files.read_chat_template())
    for ref in base.known:
        if tuned := claim_trained(context, name, compute_shared_key(sources, ref.fingerprint, chat)):
            return tuned
    return _train_sources(context, sources, declared.base_model)


def _train_sources(context: Context, sources: "Sources", base_model: str) -> TunedPrompt:
    from ptpipeline.tuning.multitask import train_shared

    base, checkpoints = context.engine(base_model).base, _open_checkpoints(context)
    try:
        with context.watch(f"{sources.name}: training", context.tracker):
            trained = train_shared(base, sources, checkpoints, context.tracker, context.report)
    except TrainingError:
        checkpoints.clear()  # else the next night would resume the failure
        raise
    tuned = keep_trained(context, trained)
    checkpoints.clear()
    return tuned


# ---------------------------------------------------------------- a gang


class Announced(Record):
    """What the other processes of a data parallel training have to know of a gang: `snapshots` by task, in order."""

    base_model: str
    dtype: str
    snapshots: dict[str, str]


def train(context: Context, plans: Sequence[Plan]) -> dict[str, TunedPrompt | PtpError]:
    """Train all plans of one base model that are not trained yet as one gang; a task's own error stands for its prompt.

    Raises ServiceUnavailable or SettingsError if store or ledger cannot keep what was trained: the checkpoint keeps it,
    and the same run again stores it.
    """
    claimed = {
        plan.task: claim_trained(context, plan.task, plan.training_key) for plan in plans if plan.reason != FORCED
    }
    results: dict[str, TunedPrompt | PtpError] = {name: tuned for name, tuned in claimed.items() if tuned is not None}
    fresh = [plan for plan in plans if plan.task not in results]
    if fresh:
        results |= _train_gang(context, fresh)
    return results


def _train_gang(context: Context, plans: Sequence[Plan]) -> dict[str, TunedPrompt | PtpError]:
    from ptpipeline.tuning.ranks import ALONE
    from ptpipeline.tuning.tune import TaskData, tune

    results: dict[str, TunedPrompt | PtpError] = {}
    work = []
    for plan in plans:
        try:
            declared = find_task(context.settings.tasks, plan.task)
            work.append(TaskData(declared, context.snapshot(plan.task, plan.snapshot)))
        except Terminal as error:
            results[plan.task] = error
    checkpoints, ranks, base_model = _open_checkpoints(context), context.ranks or ALONE, plans[0].base_model
    snapshots = {data.task.name: data.snapshot.digest for data in work}
    announced = Announced(base_model=base_model, dtype=context.choose_dtype(base_model), snapshots=snapshots)
    with context.watch("training", context.tracker), ranks.together(announced.model_dump_json().encode()):
        base = context.engine(base_model).base
        outcomes = tune(base, work, checkpoints, context.tracker, context.report, ranks)
    results |= {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, PtpError)}
    trained = {name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, PtpError)}
    staged, unstored = _stage_gang(context, trained)
    _remember(context, *staged.values())
    reached("gang remembered")
    if not unstored:
        checkpoints.clear()  # else the next run resumes from them
    return results | staged | unstored


class _Staged(NamedTuple):
    """What of a gang is stored, and why the rest of it cannot be."""

    prompts: dict[str, TunedPrompt]
    refused: dict[str, PtpError]


def _stage_gang(context: Context, trained: Mapping[str, "TrainedTask"]) -> _Staged:
    """Store the prompts of a gang; what concerns one prompt alone, such as foreign bytes in its place, is its error.

    Raises ServiceUnavailable or SettingsError after all were tried. Then nothing of the gang may be remembered: what
    was would not train again, and the rest, as another gang, would lose its training.
    """
    staged = _Staged({}, {})
    for name, task in trained.items():
        try:
            staged.prompts[name] = _stage(context, task)
        except PtpError as error:  # the other tasks keep their minutes of training
            staged.refused[name] = error
        reached("gang member staged")
    for refusal in staged.refused.values():
        if isinstance(refusal, Transient | SettingsError):
            raise refusal
    return staged


def _open_checkpoints(context: Context) -> "Checkpoints":
    from ptpipeline.tuning.checkpoint import Checkpoints

    registry = context.registry
    secret = take_secret(registry.ledger.database, CHECKPOINTS)
    fence = registry.ledger.database.check_fences
    return Checkpoints(registry.store, context.settings.checkpoint_seconds, secret, fence)


# ---------------------------------------------------------------- what was trained


@stamina.retry(on=Transient, attempts=8, timeout=120)
def claim_trained(context: Context, task: str, key: str) -> TunedPrompt | None:
    """Return what was trained under that key, if its bytes are stored, with the intent to register it.

    The intent keeps the garbage collection away from it.
    """
    tuned = find_trained(context, task, key)
    if tuned is not None:
        context.registry.ledger.intend(task, tuned.digest)
        tuned = find_trained(context, task, key)  # it may have been collected before the intent was there
    return tuned


def keep_trained(context: Context, trained: "TrainedTask") -> TunedPrompt:
    """Store the prompt's bytes and remember how it was trained."""
    tuned = _stage(context, trained)
    _remember(context, tuned)
    return tuned


@stamina.retry(on=Transient, attempts=8, timeout=120)
def _stage(context: Context, trained: "TrainedTask") -> TunedPrompt:
    """Store the bytes; a store that does not answer for a moment must not cost minutes of training."""
    stage(context.registry.ledger, context.registry.store, trained.artifact, trained.members)
    return trained.tuned


@stamina.retry(on=Transient, attempts=8, timeout=120)
def _remember(context: Context, *tuned: TunedPrompt) -> None:
    """Save the prompts of a gang together.

    If the process were killed between two, the next run would train the rest as another gang, to other bits.
    """
    context.registry.ledger.save_tuned(*tuned)
