"""A second version beside the one that an alias names: a canary that answers a share of the requests, or a shadow.

It is a promotion like any other: the ledger decides, the pointer shows it, and a rollback ends it. A canary of a gated
alias answers requests, so it needs all that a promotion needs. A shadow answers none, so no gate judges it.
"""

from ptpipeline.errors import PromotionRefused
from ptpipeline.records.versions import PRODUCTION, Beside, Promotion
from ptpipeline.task.task import Task
from registry.failpoints import reached
from registry.ledger.ledger import Move
from registry.registry import Registry
from registry.versions.commit import Cause, check_cause, commit
from registry.versions.projection import follow
from registry.versions.promoters import check_promoter
from registry.versions.promotion import (
    GATED,
    Transition,
    check_alias,
    check_base,
    check_bytes,
    check_ledger,
    check_transition,
)


def place_beside(
    registry: Registry, task: Task, version: int, percent: int, cause: Cause, alias: str = PRODUCTION
) -> Promotion:
    """Let `version` answer `percent` of the alias's requests, or be asked as a shadow if that is 0.

    To place what stands there already returns the head. Raises what `promote` raises; PromotionRefused too if the alias
    names nothing yet, or that version itself.
    """
    head = registry.ledger.head(task.name, check_alias(alias))
    if head is None:
        raise PromotionRefused(
            f"{task.name}@{alias}: it names no version yet, so there is nothing beside which another one could stand; "
            "promote a first one without --canary and --shadow"
        )
    if head.version == version:
        raise PromotionRefused(f"{task.name}@{alias}: it names version {version} itself; choose another one")
    beside = head.beside
    if beside is None or (beside.version, beside.percent) != (version, percent):
        transition = Transition(head, registry.ledger.version(task.name, version))
        check = _check_canary if percent else _check_shadow
        stands = check(registry, task, transition, cause, alias).model_copy(update={"percent": percent})
        move = _build_move(head, stands, cause)
        if alias in GATED:  # the row repeats that the alias's own version overrides the gate, if it does
            check_promoter(task.promoters, f"{task.name}@{alias}", cause, move.override or stands.override)
        [head] = commit(registry, [move])
        reached("promotion committed")
    follow(registry, head)
    return head


def _check_canary(registry: Registry, task: Task, transition: Transition, cause: Cause, alias: str) -> Beside:
    """Return the version as it may answer requests of the alias; raises as `promote` does."""
    move, version = check_transition(registry, task, transition, cause, alias), transition.version
    return Beside(
        version=version.number, digest=version.digest, percent=1, verdict=move.verdict, override=move.override
    )


def _check_shadow(registry: Registry, task: Task, transition: Transition, cause: Cause, alias: str) -> Beside:
    """Return the version as it may be asked beside the alias's own: intact, and of the task's base."""
    check_cause(cause)
    check_ledger(registry, task.name, alias, transition.head)
    check_base(task, check_bytes(registry, transition.version))
    return Beside(version=transition.version.number, digest=transition.version.digest, percent=0)


def _build_move(head: Promotion, beside: Beside, cause: Cause) -> Move:
    """Return the move that leaves the alias where it is, on the verdict that it has, with that version beside it."""
    return Move(
        task=head.task,
        alias=head.alias,
        version=head.version,
        actor=cause.actor,
        reason=cause.reason,
        expected=head.seq,
        verdict=head.verdict,
        override=head.override,
        beside=beside,
    )
