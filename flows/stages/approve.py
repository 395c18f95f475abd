"""The stage in which people decide about a candidate that passed its gate; enough approvals promote it."""

from datetime import UTC, datetime
from typing import NamedTuple

from flows.stages.context import Context
from flows.stages.promote import judge_again
from ptpipeline.records.base import Record
from ptpipeline.records.versions import PRODUCTION, Promotion, PromptVersion
from ptpipeline.task.folder import find_task
from ptpipeline.task.task import Task
from registry.ledger.approvals import Standing, find_standing, list_standings
from registry.registry import Registry
from registry.versions import approval, promotion
from registry.versions.commit import Cause, check_cause
from registry.versions.projection import follow
from registry.versions.promoters import check_promoter


class Approvals(Record):
    """How a request for approval stands, as people see it."""

    task: str
    version: int
    status: str
    given: int
    needed: int
    started_by: str
    decisions: list[str]
    asked_at: str
    expires_at: str
    verdict: str


class Decided(NamedTuple):
    """How the request stands after a person's decision, and the promotion that it led to."""

    approvals: Approvals
    promotion: Promotion | None


def approve(context: Context, task: str, version: int, cause: Cause, read: str) -> Decided:
    """Record that a person approves a candidate; if enough people did, production names it.

    `read` are the first digits of the verdict that this person read: no other one is approved. If the policy or the
    champion changed since it was judged, it is judged again first, and what was approved before does not count. If
    production names it already, this only shows it to readers: whoever promoted it may have died before. Raises what
    `approval.approve` and `promotion.promote` raise.
    """
    declared, wanted = _find(context, task, version, cause)
    head = context.registry.ledger.head(task, PRODUCTION)
    known = find_standing(context.registry.ledger.database, task, wanted.digest)
    if known and head and head.version == version:
        follow(context.registry, head)
        return Decided(describe(declared, known), head)
    approval.check_order(context.registry, declared, PRODUCTION, wanted)
    judge_again(context, declared, wanted)
    verdict = promotion.require_passed(context.registry, declared, promotion.Transition(head, wanted))
    # else it is refused for that, or people are asked again
    if known and not known.rejection and known.request.verdict == verdict.verdict_digest():
        approval.check_read(wanted, verdict, read)
    standing = approval.approve(context.registry, declared, wanted, verdict, cause)
    if not approval.is_approved(declared, standing):
        return Decided(describe(declared, standing), None)
    promoted = promotion.promote(context.registry, declared, version, _join_reasons(standing, cause))
    return Decided(describe(declared, standing), promoted)


def reject(context: Context, task: str, version: int, cause: Cause) -> Approvals:
    """Record that a person rejects a candidate: nothing asks for it again. Raises what `approval.reject` raises."""
    declared, wanted = _find(context, task, version, cause)
    return describe(declared, approval.reject(context.registry, wanted, cause))


def list_waiting(registry: Registry, tasks: dict[str, Task], task: str | None = None) -> list[Approvals]:
    """Return the requests that wait for people, newest first."""
    heads = {head.task: head.version for head in registry.ledger.heads(task) if head.alias == PRODUCTION}
    return [
        describe(tasks[standing.request.task], standing)
        for standing in list_standings(registry.ledger.database, task)
        if standing.request.task in tasks
        and heads.get(standing.request.task) != standing.request.version
        and standing.seconds_left
        and not standing.rejection
    ]


def describe(task: Task, standing: Standing) -> Approvals:
    """Return how a request stands, for people."""
    request, needed, given = standing.request, task.approvals or 1, approval.count_approvals(task, standing)
    undecided = "waiting" if standing.seconds_left else "expired"
    return Approvals(
        task=request.task,
        version=request.version,
        status="rejected" if standing.rejection else "approved" if given >= needed else undecided,
        given=given,
        needed=needed,
        started_by=request.started_by,
        decisions=[
            f"{'approved' if row.approved else 'rejected'} by {row.actor} at {row.at}: {row.reason}"
            for row in standing.decisions
        ],
        asked_at=request.at,
        expires_at=datetime.fromtimestamp(request.expires, UTC).isoformat(timespec="seconds"),
        verdict=request.verdict,
    )


def _find(context: Context, task: str, version: int, cause: Cause) -> tuple[Task, PromptVersion]:
    """Return task and version, if this person may decide about them."""
    check_cause(cause)
    declared = find_task(context.settings.tasks, task)
    check_promoter(declared.promoters, f"{task}@{PRODUCTION}", cause, override=False)
    return declared, context.registry.ledger.version(task, version)


def _join_reasons(standing: Standing, cause: Cause) -> Cause:
    """Return the cause of the promotion: the history names everybody who approved it."""
    given = standing.decisions  # approvals all: what one person rejected is not promoted
    reason = given[0].reason if len(given) == 1 else "; ".join(f"{row.actor}: {row.reason}" for row in given)
    return Cause(cause.actor, f"approved: {reason}", signer=cause.signer)
