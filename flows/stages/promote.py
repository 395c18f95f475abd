"""The stage that lets production name a version; a person's promotion is judged again before."""

from collections.abc import Mapping

from flows.stages.context import MACHINE, Context
from flows.stages.ingest import ingest
from flows.stages.judge import evaluate, gate
from flows.stages.register import build_provenance, keep_verdict
from ptpipeline.gate.decide import needs_a_person
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.base import now
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import PRODUCTION, Promotion, PromptVersion
from ptpipeline.task.folder import find_task
from ptpipeline.task.task import Task
from registry.ledger.ledger import Release
from registry.versions import promotion
from registry.versions.approval import find_rejection, request_approval
from registry.versions.beside import place_beside
from registry.versions.commit import Cause, check_cause
from registry.versions.projection import follow_heads
from registry.versions.promoters import check_promoter


def promote(
    context: Context, task: Task, version: PromptVersion, verdict: Verdict, actor: str = MACHINE
) -> Promotion | None:
    """Promote by the task's policy: `auto` promotes what passed, `manual` asks people for approval.

    A machine does not promote what production named before, because a person rolled it back, nor what a person
    rejected. What could not be compared with the champion waits for approval too, and so does everything while a person
    lets two versions stand beside each other. Whether it promotes or not, what somebody promoted and died before
    readers saw it is shown to them.
    """
    promoted = _promote_by_policy(context, task, version, verdict, actor)
    follow_heads(context.registry, task.name)
    return promoted


def _promote_by_policy(
    context: Context, task: Task, version: PromptVersion, verdict: Verdict, actor: str
) -> Promotion | None:
    history = context.registry.ledger.history(task.name, PRODUCTION)
    was_promoted = version.number in {row.version for row in history}
    if not verdict.passed or was_promoted:
        return None
    if task.promote == "manual" or needs_a_person(verdict) or (history and history[-1].beside):
        request_approval(context.registry, task, version, verdict, context.started_by)
        return None
    if find_rejection(context.registry, version):
        return None
    cause = Cause(actor, f"passed the gate: {_summarise(verdict)}")
    return promotion.promote(context.registry, task, version.number, cause)


def move(context: Context, task: str, alias: str, version: int, cause: Cause, beside: int | None = None) -> Promotion:
    """Promote a version because a person asks for it; an outdated verdict is renewed first, and has to pass.

    beside: let it stand beside the alias's own instead, and answer so many percent of the requests; 0 makes it a shadow
    that answers none, which needs no verdict.
    """
    check_cause(cause)  # before the gate takes its time
    declared = find_task(context.settings.tasks, task)
    if alias == PRODUCTION:
        check_promoter(declared.promoters, f"{task}@{alias}", cause, override=False)
        if beside != 0:
            judge_again(context, declared, context.registry.ledger.version(task, version))
    if beside is not None:
        return place_beside(context.registry, declared, version, beside, cause, alias)
    return promotion.promote(context.registry, declared, version, cause, alias)


def move_release(context: Context, name: str, versions: Mapping[str, int], cause: Cause) -> list[Promotion]:
    """Promote these versions of several tasks together; outdated verdicts are renewed first."""
    registry = context.registry
    release = Release(name=name, actor=cause.actor, reason=cause.reason, versions=dict(versions), at=now())
    check_cause(cause)
    promotion.check_release(registry, release)
    declared = {task: find_task(context.settings.tasks, task) for task in versions}
    for task in versions:
        check_promoter(declared[task].promoters, f"{task}@{PRODUCTION}", cause, override=False)
    found = [registry.ledger.version(task, number) for task, number in versions.items()]  # all, before one is looked at
    for version in found:
        judge_again(context, declared[version.task], version)
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
    keep_verdict(context, task, version, build_provenance(context, task, publication.tuned, report, verdict))


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
