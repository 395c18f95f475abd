"""The stages that make a candidate a version and let production name it; a person's promotion is judged again."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flows.stages.context import MACHINE, Context, checkout_commit, ingest
from flows.stages.judge import evaluate, gate, take_reveal
from ptpipeline.gate.decide import needs_a_person
from ptpipeline.gate.disclosure import disclose, disclose_verdict, is_withheld
from ptpipeline.prompts.artifact import Artifact, read_artifact
from ptpipeline.records.base import now
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Reveal, Verdict
from ptpipeline.records.versions import PRODUCTION, Promotion, PromptVersion
from ptpipeline.task.folder import find_task
from ptpipeline.task.task import Task
from registry.card.card import Provenance
from registry.ledger.ledger import Release
from registry.versions import promotion, publish
from registry.versions.content import is_sound
from registry.versions.projection import follow_heads
from registry.versions.promoters import check_promoter
from registry.versions.promotion import Cause

if TYPE_CHECKING:
    from ptpipeline.evaluation.mistakes import Mistakes
    from ptpipeline.prompts.interpretation import Neighbours


def register(context: Context, task: Task, tuned: TunedPrompt, report: Report, verdict: Verdict) -> PromptVersion:
    """Register the candidate as a numbered version, with verdict, figures and plots, whether it passed or not."""
    if not task.texts_in_reports:
        publish.withhold_texts(context.registry, task.name)
    return publish.register(context.registry, _build_provenance(context, task, tuned, report, verdict))


def promote(
    context: Context, task: Task, version: PromptVersion, verdict: Verdict, actor: str = MACHINE
) -> Promotion | None:
    """Promote by the task's policy: `auto` promotes what passed, `manual` leaves it to a person.

    A machine does not promote what production named before, because a person rolled it back, nor what could not be
    compared with the champion. Whether it promotes or not, what somebody promoted and died before readers saw it is
    shown to them.
    """
    promoted = _promote_by_policy(context, task, version, verdict, actor)
    follow_heads(context.registry, task.name)
    return promoted


def _promote_by_policy(
    context: Context, task: Task, version: PromptVersion, verdict: Verdict, actor: str
) -> Promotion | None:
    was_promoted = version.number in {row.version for row in context.registry.ledger.history(task.name, PRODUCTION)}
    if not verdict.passed or task.promote == "manual" or was_promoted or needs_a_person(verdict):
        return None
    cause = Cause(actor, f"passed the gate: {_summarise(verdict)}")
    return promotion.promote(context.registry, task, version.number, cause)


def move(context: Context, task: str, alias: str, version: int, cause: Cause) -> Promotion:
    """Promote a version because a person asks for it; an outdated verdict is renewed first, and has to pass."""
    promotion.check_cause(cause)  # before the gate takes its time
    declared = find_task(context.settings.tasks, task)
    if alias == PRODUCTION:
        check_promoter(declared.promoters, f"{task}@{alias}", cause, override=False)
        judge_again(context, declared, context.registry.ledger.version(task, version))
    return promotion.promote(context.registry, declared, version, cause, alias)


def move_release(context: Context, name: str, versions: Mapping[str, int], cause: Cause) -> list[Promotion]:
    """Promote these versions of several tasks together; outdated verdicts are renewed first."""
    registry = context.registry
    release = Release(name=name, actor=cause.actor, reason=cause.reason, versions=dict(versions), at=now())
    promotion.check_cause(cause)
    promotion.check_release(registry, release)
    declared = {task: find_task(context.settings.tasks, task) for task in versions}
    for task in versions:
        check_promoter(declared[task].promoters, f"{task}@{PRODUCTION}", cause, override=False)
    for task, number in versions.items():
        judge_again(context, declared[task], registry.ledger.version(task, number))
    return promotion.promote_release(registry, declared, release, cause)


def judge_again(context: Context, task: Task, version: PromptVersion) -> None:
    """Evaluate and gate a version again if the policy or the champion changed since its last verdict.

    A version of other labels or another base model is left as it is: it has to be trained again.
    """
    publication = context.registry.ledger.publication(task.name, version.digest)
    if publication is None or not _is_outdated(context, task, version):
        return
    manifest = read_artifact(context.registry.store, task.name, version.digest).manifest
    if manifest.labels != task.labels or manifest.base_model.name != task.base_model:
        return
    report = evaluate(context, task, publication.tuned, ingest(context, task).digest)
    verdict = gate(context, task, publication.tuned, report)
    _keep(context, task, version, _build_provenance(context, task, publication.tuned, report, verdict))


def reveal(context: Context, task: Task, version: PromptVersion, by: str) -> Reveal | None:
    """Show the figures of a refused candidate from now on, for which the test rows serve a look.

    Returns the look and who asked for it, which every later view shows; None if nothing was withheld. Raises NotFound
    if the rows that judged are not stored any more.
    """
    registry = context.registry
    verdict, publication = (
        registry.ledger.latest_verdict(task.name, version.digest),
        registry.ledger.publication(task.name, version.digest),
    )
    report = registry.ledger.report(verdict.evaluation_key) if verdict else None
    if verdict is None or not is_withheld(verdict) or report is None or publication is None:
        return verdict.reveal if verdict else None
    asked = Reveal(by=by, look=take_reveal(context, task, report, verdict))
    revealed = verdict.model_copy(update={"reveal": asked})
    _keep(context, task, version, _build_provenance(context, task, publication.tuned, report, revealed))
    return asked


def _keep(context: Context, task: Task, version: PromptVersion, provenance: Provenance) -> None:
    """Keep a new verdict on a version, and show it on the version's page."""
    registry = context.registry
    # first the store: a lost ledger is rebuilt from it, and a promotion may name only a verdict that survives that
    publish.remember(registry, provenance)
    if provenance.verdict:
        registry.ledger.save_verdict(provenance.verdict)
    publish.write_page(registry, publish.load_card(registry, task.name, version.digest), version)


def _is_outdated(context: Context, task: Task, version: PromptVersion) -> bool:
    """Whether the version was judged, but not under today's policy against today's champion, which it is not itself."""
    ledger = context.registry.ledger
    head, verdicts = ledger.head(task.name, PRODUCTION), ledger.verdicts(task.name, version.digest)
    if version.collected or not verdicts or (head and head.version == version.number):
        return False
    today = (task.policy_digest(), head.digest if head else None)
    return today not in [(verdict.policy, verdict.champion) for verdict in verdicts if not needs_a_person(verdict)]


def _summarise(verdict: Verdict) -> str:
    difference = verdict.comparison
    against = (
        f", {difference.metric} {difference.difference:+.4f} against the champion"
        if difference
        else ", the first to do so"
    )
    return f"{len(verdict.checks)} checks{against}"


# ---------------------------------------------------------------- what is registered


def _build_provenance(context: Context, task: Task, tuned: TunedPrompt, report: Report, verdict: Verdict) -> Provenance:
    from ptpipeline.evaluation.plots import draw_plots

    registry, shown = context.registry, disclose(report, verdict)
    known = registry.ledger.publication(task.name, tuned.digest)
    stored = (
        known is not None and bool(known.plots) and all(is_sound(registry.store, key) for key in known.plots.values())
    )
    drawn = stored and registry.ledger.latest_verdict(task.name, tuned.digest) == verdict
    return Provenance(
        tuned,
        report,
        verdict,
        {} if drawn else draw_plots(task, tuned, shown.report, disclose_verdict(verdict)),
        commit=checkout_commit(),
        neighbours=_find_new_neighbours(context, task.name, tuned.digest),
        mistakes=_find_mistakes(context, task, shown.report) if shown.report else None,
    )


def _find_mistakes(context: Context, task: Task, report: Report) -> "Mistakes | None":
    """Return the rows that the prompt gets wrong; None unless the task allows their texts in reports."""
    from ptpipeline.data.snapshot import load_split
    from ptpipeline.evaluation.mistakes import find_mistakes
    from ptpipeline.evaluation.results import Results

    if not task.texts_in_reports:
        return None
    store, snapshot = context.registry.store, context.snapshot(task.name, report.snapshot)
    return find_mistakes(task, Results.of(store, report), load_split(store, snapshot, report.split))


def _find_new_neighbours(context: Context, task: str, digest: str) -> "Neighbours | None":
    """Return the words near the virtual tokens; None if they are stored, or are those of an ensemble's members."""
    registry = context.registry
    known, artifact = registry.ledger.publication(task, digest), read_artifact(registry.store, task, digest)
    if (known and known.neighbours and is_sound(registry.store, known.neighbours)) or artifact.manifest.members:
        return None
    return find_neighbours(context, artifact)


def find_neighbours(context: Context, artifact: Artifact) -> "Neighbours":
    """Return the vocabulary tokens nearest to a prompt's virtual tokens."""
    from ptpipeline.prompts.neighbours import find_neighbours
    from ptpipeline.prompts.tensors import unpack

    base = context.engine(artifact.manifest.base_model.name).base
    return find_neighbours(base, unpack(artifact, *base.known))
