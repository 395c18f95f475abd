"""Changing aliases in MLflow: an alias that a person set there becomes a promotion, or is put back with the reason.

A difference counts as a person's edit only if it is seen twice, further apart than the requests of one write can last.
"""

import logging
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from ptpipeline.errors import NotFound, PromotionConflict, PromotionRefused
from ptpipeline.records.base import now
from ptpipeline.records.versions import Promotion, PromptVersion
from ptpipeline.task.task import Task
from registry.failpoints import reached
from registry.ledger.lease import leased
from registry.ledger.projections import sight
from registry.mlflow import client as mlflow_client
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.versions import projection
from registry.versions.commit import Cause, commit
from registry.versions.mlflow_alias import Action, HeldAlias, Seen
from registry.versions.projection import attempt, lease_name, settle
from registry.versions.promotion import Transition, check_transition

CAUSE = Cause("mlflow-ui", "alias set in the MLflow UI")

log = logging.getLogger(__name__)


class Edit(NamedTuple):
    """What a person set in MLflow: the version, and the promotion that was the alias's head then."""

    head: Promotion
    wanted: PromptVersion


def judge(registry: Registry, mlflow: MlflowStore, tasks: Mapping[str, Task], head: Promotion) -> list[Action]:
    """Judge an alias that MLflow shows at another version than the head's; returns what was done, nothing if the
    difference is the projection's to mend.

    `tasks` are the declared ones by name: the edit of another cannot be judged, so it is put back. Raises LeaseHeld if
    another process writes the alias, ServiceUnavailable if MLflow, the store or the ledger does not answer.
    """
    with leased(registry.ledger.database, lease_name(head.task, head.alias), projection.LEASE_SECONDS) as lease:
        current = registry.ledger.head(head.task, head.alias)
        if current is None:
            return []
        held = HeldAlias(registry, mlflow, current, lease)
        seen = held.look()
        if not _may_be_an_edit(held, seen):
            return []
        wanted = _find_version(registry, head.task, seen)
        if wanted is None:
            why = "the ledger has no such version: only what `ptp run` or `ptp import` published has been tested"
            return _put_back(held, seen, why)
        seen_for = sight(registry.ledger, current, wanted.digest)
        left = seconds_apart() - seen_for
        if left > 0:
            what = (
                f"MLflow alias {head.alias} was set to version {wanted.number}; a reconcile judges it, {left:.0f} s "
                "from now at the earliest"
            )
            if not seen_for:
                log.warning("%s: %s", head.task, what)
            return [Action(task=head.task, what=what, done=False)]
    return _promote(registry, mlflow, tasks.get(head.task), Edit(current, wanted))


def seconds_apart() -> float:
    """Return how many seconds two looks have to be apart.

    The first look holds the lease, so whoever held it before begins no other write. What was under way, the alias and
    its tag, has ended by the second; only a process that stood still may write later, and the note of its write tells.
    """
    return 2.0 * mlflow_client.REQUEST_SECONDS


def _may_be_an_edit(held: HeldAlias, seen: Seen) -> bool:
    return (
        seen.follows
        and seen.digest is not None
        and seen.digest != held.head.digest
        and not held.is_late_write(seen.digest)
    )


def _find_version(registry: Registry, task: str, seen: Seen) -> PromptVersion | None:
    try:
        return registry.ledger.version_of(task, seen.digest or "")
    except NotFound:
        return None


def _promote(registry: Registry, mlflow: MlflowStore, task: Task | None, edit: Edit) -> list[Action]:
    """Promote what the edit names, from the very head that it was seen over and by today's rules; else put it back."""
    head, wanted = edit
    try:
        if task is None:
            raise PromotionRefused(f"{head.task}: no valid task file declares this task, so the gate cannot judge it")
        move = check_transition(registry, task, Transition(head, wanted), CAUSE, head.alias)
        [promotion] = commit(registry, [move])
    except PromotionConflict:
        return settle(registry, head, projection.LEASE_SECONDS)
    except PromotionRefused as refusal:
        return _refuse(registry, mlflow, edit, str(refusal))
    reached("promotion committed")
    done = Action(
        task=head.task,
        what=f"MLflow alias {head.alias}: a person set it to version {wanted.number}, promoted as seq {promotion.seq}",
    )
    return [done, *attempt(head.task, partial(settle, registry, promotion, projection.LEASE_SECONDS))]


def _refuse(registry: Registry, mlflow: MlflowStore, edit: Edit, why: str) -> list[Action]:
    head, wanted = edit
    with leased(registry.ledger.database, lease_name(head.task, head.alias), projection.LEASE_SECONDS) as lease:
        held = HeldAlias(registry, mlflow, head, lease)
        seen = held.look()
        if (
            registry.ledger.head(head.task, head.alias) != head
            or seen.digest != wanted.digest
            or not _may_be_an_edit(held, seen)
        ):
            return []  # something changed since it was judged: the next reconcile looks again
        return _put_back(held, seen, why)


def _put_back(held: HeldAlias, seen: Seen, why: str) -> list[Action]:
    head, number = held.head, str(seen.number)
    sentence = (
        f"{why}; so the alias {head.alias}, which was set here in MLflow, went back to version {head.version} ({now()})"
    )
    log.warning("%s, MLflow version %s: %s", head.task, number, sentence)
    held.mlflow.refuse(head.task, number, sentence)
    return [
        *held.write(),
        Action(
            task=head.task,
            what=f"MLflow alias {head.alias} put back from MLflow version {number} to version {head.version}: {why}",
        ),
    ]
