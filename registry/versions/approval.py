"""Who may approve or reject a candidate, which approvals count, and what a promotion of production needs of them.

An approval binds the verdict that it was given on. If the policy or the champion changed since, the candidate is judged
again, gets another verdict, and has to be approved again.
"""

import re
import unicodedata
from functools import partial

from ptpipeline.errors import PromotionRefused
from ptpipeline.records.base import now
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import PRODUCTION, PromptVersion
from ptpipeline.task.task import Task
from registry.ledger.approvals import Asked, Decision, Standing, ask, find_standing, record_decision
from registry.registry import Registry
from registry.versions.commit import Cause

NOBODY = ("", "nightly", "prefect", "mlflow-ui")  # actors that are no person


def request_approval(
    registry: Registry, task: Task, version: PromptVersion, verdict: Verdict, started_by: str
) -> Standing:
    """Ask people to decide about a candidate, whose run that person or machine started; see `approvals.ask`."""
    asked = Asked(version, verdict.verdict_digest(), started_by, task.approval_days)
    return ask(registry.ledger.database, asked)


def approve(registry: Registry, task: Task, version: PromptVersion, verdict: Verdict, cause: Cause) -> Standing:
    """Record that a person approves the candidate by that verdict; returns what was decided by now.

    A person who repeats an approval that is recorded already changes nothing. Raises PromotionRefused if nobody asked
    for it, if the request expired or was rejected, if it was judged again since (people are asked again then), or if
    this person may not approve it.
    """
    database = registry.ledger.database
    known = find_standing(database, version.task, version.digest)
    if known is None:
        raise PromotionRefused(f"{_name(version)} does not wait for approval; `ptp run {task.name}` asks for it")
    _check_open(task, known)
    if known.request.verdict != verdict.verdict_digest():
        request_approval(registry, task, version, verdict, known.request.started_by)
        name = _name(version)
        raise PromotionRefused(
            f"{name} was judged again since people were asked; read the new report (`ptp show {name}`), then approve it"
        )
    if _find_decision(known, cause) and is_approved(task, known):
        return known
    decision = _decision(cause, approved=True)
    return record_decision(database, known.request, decision, partial(_check_approver, task, cause))


def check_read(version: PromptVersion, verdict: Verdict, read: str) -> None:
    """Raise PromotionRefused unless the verdict begins with the digits of the one that the person read."""
    if not verdict.verdict_digest().startswith(read):
        name = _name(version)
        raise PromotionRefused(
            f"{name}: you read the verdict {read}, and people are asked about another one: it was judged again since, "
            f"or you read that of another candidate; read the report (`ptp show {name}`), then approve it"
        )


def reject(registry: Registry, version: PromptVersion, cause: Cause) -> Standing:
    """Record that a person rejects the candidate, for which nobody is asked again.

    Raises PromotionRefused if nobody asked for it, or if it was rejected already, is in production or is its canary.
    """
    known = find_standing(registry.ledger.database, version.task, version.digest)
    if known is None:
        raise PromotionRefused(f"{_name(version)} does not wait for approval, so there is nothing to reject")
    head = registry.ledger.head(version.task, PRODUCTION)
    if head and head.digest == version.digest:
        raise PromotionRefused(f"{_name(version)} is in production; `ptp rollback {version.task}` takes it back")
    if head and head.beside and head.beside.digest == version.digest and not head.beside.is_shadow:
        raise PromotionRefused(
            f"{_name(version)} answers {head.beside.percent}% of production's requests; `ptp rollback {version.task}` "
            "ends that, then reject it"
        )
    decision = _decision(cause, approved=False)
    return record_decision(registry.ledger.database, known.request, decision, _check_not_rejected)


def is_approved(task: Task, standing: Standing) -> bool:
    """Return whether enough people approved it."""
    return count_approvals(task, standing) >= (task.approvals or 1)


def count_approvals(task: Task, standing: Standing) -> int:
    """Return how many approvals count: if promotions need a promoter's signature, those of today's promoters."""
    keys = task.promoters.public_keys() if task.promoters and task.promoters.are_needed(override=False) else None
    given = [decision for decision in standing.decisions if decision.approved]
    return sum(keys is None or decision.key in keys for decision in given)


def find_rejection(registry: Registry, version: PromptVersion) -> Decision | None:
    """Return the decision that rejected the candidate, if one did."""
    standing = find_standing(registry.ledger.database, version.task, version.digest)
    return standing.rejection if standing else None


def check_people(registry: Registry, task: Task, version: PromptVersion, verdict: Verdict | None, cause: Cause) -> None:
    """Raise PromotionRefused if production may not name the version because of what people decided, or did not.

    A rejected candidate is promoted by an override alone. Where the task asks for approvals, nothing replaces them: an
    override covers the gate.
    """
    standing = find_standing(registry.ledger.database, version.task, version.digest)
    rejection = standing.rejection if standing else None
    if rejection and not (cause.override and task.approvals is None):
        raise PromotionRefused(f"{_name(version)} {describe_rejection(rejection)}")
    if task.approvals is None:
        return
    bound = standing and verdict and standing.request.verdict == verdict.verdict_digest() and standing.seconds_left
    given = count_approvals(task, standing) if standing and bound else 0
    if given < task.approvals:
        earlier = "; those given before do not count, because it was judged again or they expired"
        raise PromotionRefused(
            f"{_name(version)}: its task file asks for {task.approvals} approval{'s' * (task.approvals > 1)} of its "
            f"newest verdict, and it has {given}{earlier if standing and standing.decisions and not bound else ''}; "
            f"people who did not start its run give them by `ptp approve {_name(version)}`"
        )


def check_order(registry: Registry, task: Task, alias: str, version: PromptVersion) -> None:
    """Raise PromotionRefused if the task's order of aliases says that another alias names the version first."""
    place = task.aliases.index(alias) if alias in task.aliases else 0
    before = task.aliases[place - 1] if place else None
    head = registry.ledger.head(task.name, before) if before else None
    if before and (head is None or head.version != version.number):
        names = f"names version {head.version}" if head else "names nothing yet"
        raise PromotionRefused(
            f"{task.name}@{alias}: the task's `aliases` let {before} name a version first, and {before} {names}; "
            f"`ptp promote {_name(version)} --alias {before} --reason ...`"
        )


def describe_rejection(rejection: Decision) -> str:
    """Return who rejected it, when and why, as the end of a sentence about the version."""
    return f"was rejected by {rejection.actor} at {rejection.at} ({rejection.reason}); train another candidate"


def person_of(actor: str) -> str:
    """Return the person that an actor of the history is, or claims to be, however the request came and however the
    name is spelled: by other spaces, cases or forms of a letter, or with characters that nobody sees.
    """
    seen = "".join(c for c in actor if unicodedata.category(c) not in ("Cc", "Cf") or c.isspace())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
    name = " ".join(folded.split())
    while around := re.fullmatch(r"prefect \(claims ?(.*)\)|(.*?) ?\(key [0-9a-f]{16}\)", name):
        name = (around[1] or around[2] or "").strip()
    return name


# ---------------------------------------------------------------- who may decide


def _check_approver(task: Task, cause: Cause, standing: Standing) -> None:
    _check_open(task, standing)
    who, request = person_of(cause.actor), standing.request
    name = f"{request.task}@{request.version}"
    if who in NOBODY:
        raise PromotionRefused(f"{name}: an approval needs the name of the person who gives it; found {cause.actor!r}")
    if task.approvals and who == person_of(request.started_by):
        raise PromotionRefused(
            f"{name}: {cause.actor} started the run that made it, so somebody else has to approve it"
        )
    earlier = _find_decision(standing, cause)
    if earlier:
        raise PromotionRefused(
            f"{name}: {earlier.actor} approved it at {earlier.at} already; it needs {task.approvals or 1} different "
            "people"
        )


def _check_open(task: Task, standing: Standing) -> None:
    _check_not_rejected(standing)
    if not standing.seconds_left:
        request = standing.request
        raise PromotionRefused(
            f"{request.task}@{request.version}: the request for approval of {request.at} expired (`approval_days`); "
            f"`ptp run {task.name}` asks again"
        )


def _check_not_rejected(standing: Standing) -> None:
    if standing.rejection:
        name = f"{standing.request.task}@{standing.request.version}"
        raise PromotionRefused(f"{name} {describe_rejection(standing.rejection)}")


def _find_decision(standing: Standing, cause: Cause) -> Decision | None:
    """The decision of the person who asks: known by name, or by the key that signs for them."""
    who, key = person_of(cause.actor), cause.signer.id if cause.signer else None
    return next(
        (row for row in standing.decisions if person_of(row.actor) == who or (key is not None and row.key == key)), None
    )


def _decision(cause: Cause, approved: bool) -> Decision:
    key = cause.signer.id if cause.signer else None
    return Decision(approved=approved, actor=cause.actor, key=key, reason=cause.reason, at=now())


def _name(version: PromptVersion) -> str:
    return f"{version.task}@{version.number}"
