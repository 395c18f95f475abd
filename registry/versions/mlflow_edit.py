"""The MLflow UI as a front door: an alias that a person set there becomes a promotion, or is put back with the reason.

Only what stays the same over two looks, further apart than a lease and a request's time-out, is taken for a person's
edit.
"""

import logging
from collections.abc import Mapping
from functools import partial

from ptpipeline.errors import NotFound, PromotionConflict, PromotionRefused
from ptpipeline.records import Promotion, PromptVersion, now
from ptpipeline.task.task import Task
from registry.failpoints import reached
from registry.ledger.lease import leased
from registry.ledger.projections import sight
from registry.mlflow import store as mlflow_store
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.versions import projection
from registry.versions.mlflow_alias import Action, HeldAlias, Seen
from registry.versions.projection import attempted, lease_name, settle
from registry.versions.promotion import Cause, checked_move

CAUSE = Cause("mlflow-ui", "alias set in the MLflow UI")

log = logging.getLogger(__name__)


def judge(registry: Registry, mlflow: MlflowStore, tasks: Mapping[str, Task], head: Promotion) -> list[Action]:
    """What comes of an alias that MLflow shows elsewhere than the head; nothing where the projection answers for it.

    `tasks` are the declared ones by name: an edit of another cannot be judged, so it is put back. Raises LeaseHeld
    where another process writes the alias, ServiceUnavailable where MLflow, the store or the ledger does not answer.
    """
    with leased(registry.ledger.database, lease_name(head.task, head.alias), projection.LEASE_SECONDS) as lease:
        current = registry.ledger.head(head.task, head.alias)
        if current is None:
            return []
        held = HeldAlias(registry, mlflow, current, lease)
        seen = held.look()
        if not _may_be_an_edit(held, seen):
            return []
        wanted = _version(registry, head.task, seen)
        if wanted is None:
            return _put_back(
                held,
                seen,
                "it is no version of the ledger: only what `ptp run` or `ptp import` published has been tested",
            )
        left = seconds_apart() - sight(registry.ledger, current, wanted.digest)
        if left > 0:
            return [
                Action(
                    task=head.task,
                    what=f"MLflow alias {head.alias} was set to version {wanted.number}; judged by a reconcile "
                    f"{left:.0f} s from now or later",
                    done=False,
                )
            ]
    return _promoted(registry, mlflow, tasks.get(head.task), (wanted, current))


def seconds_apart() -> float:
    """How far apart two looks have to be: by then whoever held the lease has lost it, and its last request has
    ended.
    """
    return projection.LEASE_SECONDS + mlflow_store.REQUEST_SECONDS


def _may_be_an_edit(held: HeldAlias, seen: Seen) -> bool:
    return (
        seen.follows
        and seen.digest is not None
        and seen.digest != held.head.digest
        and not held.is_late_write(seen.digest)
    )


def _version(registry: Registry, task: str, seen: Seen) -> PromptVersion | None:
    try:
        return registry.ledger.version_of(task, seen.digest or "")
    except NotFound:
        return None


def _promoted(
    registry: Registry, mlflow: MlflowStore, task: Task | None, step: tuple[PromptVersion, Promotion]
) -> list[Action]:
    """The edit as a promotion from the very head that it was seen over, by today's rules; else put back."""
    wanted, head = step
    try:
        if task is None:
            raise PromotionRefused(
                f"{head.task}: no sound task file declares this task, so nothing can be judged for it"
            )
        promotion = registry.ledger.append(checked_move(registry, task, step, CAUSE, head.alias))
    except PromotionConflict:
        return settle(registry, head, projection.LEASE_SECONDS)
    except PromotionRefused as refusal:
        return _refused(registry, mlflow, step, str(refusal))
    reached("promotion committed")
    done = Action(
        task=head.task,
        what=f"MLflow alias {head.alias}: a person set it to version {wanted.number}, promoted as seq {promotion.seq}",
    )
    return [done, *attempted(head.task, partial(settle, registry, promotion, projection.LEASE_SECONDS))]


def _refused(registry: Registry, mlflow: MlflowStore, step: tuple[PromptVersion, Promotion], why: str) -> list[Action]:
    wanted, head = step
    with leased(registry.ledger.database, lease_name(head.task, head.alias), projection.LEASE_SECONDS) as lease:
        held = HeldAlias(registry, mlflow, head, lease)
        seen = held.look()
        if (
            registry.ledger.head(head.task, head.alias) != head
            or seen.digest != wanted.digest
            or not _may_be_an_edit(held, seen)
        ):
            return []  # judged over what is no longer so: the next reconcile looks again
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
