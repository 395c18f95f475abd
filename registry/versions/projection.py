"""Projections: bringing the object store's pointer and MLflow's alias to the ledger's head, as often as needed."""

import logging
import uuid
from collections.abc import Callable, Sequence

import stamina
from pydantic import ValidationError

from ptpipeline.errors import LeaseHeld, NotFound, PreconditionFailed, PtpError, Terminal
from ptpipeline.records import Pointer, Promotion
from ptpipeline.storage import Stored
from ptpipeline.storage.keys import history_key, pointer_key, quarantined_pointer_key
from registry.failpoints import reached
from registry.ledger.lease import leased
from registry.mlflow.store import REQUEST_SECONDS
from registry.registry import Registry
from registry.versions.mlflow_alias import Action, HeldAlias

LEASE_SECONDS = 3.0 * REQUEST_SECONDS
POINTER_ATTEMPTS = 5

log = logging.getLogger(__name__)


def project(registry: Registry, task: str, alias: str) -> list[Action]:
    """Let pointer and MLflow alias show the head of the alias; returns what had to be changed, nothing where all
    agrees.

    What may be a person's edit of the MLflow alias stays: the door judges it. Raises LeaseHeld where another process
    projects the same alias, ServiceUnavailable where the store or MLflow does not answer.
    """
    with leased(registry.ledger.database, lease_name(task, alias), LEASE_SECONDS) as lease:
        head = registry.ledger.head(task, alias)
        if head is None:
            raise NotFound(f"{task}@{alias}: this alias was never promoted")
        _project_history(registry, head)
        reached("history written")
        actions = _project_pointer(registry, head)
        reached("pointer written")
        registry.ledger.record_applied("store", head)
        if registry.mlflow:
            actions += HeldAlias(registry, registry.mlflow, head, lease).follow()
            registry.ledger.record_applied("mlflow", head)
    return actions


def lease_name(task: str, alias: str) -> str:
    """The lease of whoever writes that alias's pointer and MLflow alias."""
    return f"project {task}@{alias}"


def settle(registry: Registry, head: Promotion, wait: float) -> list[Action]:
    """`project` the head's alias, waiting up to `wait` seconds for another process that is at it."""
    return patiently(lambda: project(registry, head.task, head.alias), wait)


def patiently(step: Callable[[], list[Action]], wait: float) -> list[Action]:
    """What the step did, repeated for up to `wait` seconds while another process holds its lease."""
    for attempt in stamina.retry_context(on=LeaseHeld, attempts=None, timeout=wait, wait_initial=0.05, wait_max=1.0):
        with attempt:
            return step()
    return []


def attempted(task: str, step: Callable[[], list[Action]]) -> list[Action]:
    """What the step did, or the Action that it could not: one task's failure never stops another's."""
    try:
        return step()
    except PtpError as error:
        log.warning("reconcile of %s: %s", task, error)
        return [Action(task=task, what=str(error), done=False)]


# ---------------------------------------------------------------- the history and the pointer


def _project_history(registry: Registry, head: Promotion) -> None:
    """Every promotion of the alias that the store does not hold yet, as an object of its own."""
    applied = registry.ledger.applied("store", head.task, head.alias)
    done = applied.seq if applied else 0
    if done >= head.seq:
        if registry.store.exists(history_key(head.task, head.alias, head.seq)):
            return
        done = 0
    write_history(registry, registry.ledger.history(head.task, head.alias)[done:])


def write_history(registry: Registry, rows: Sequence[Promotion]) -> None:
    """Those promotions as objects; Terminal where the store holds others under their numbers."""
    for row in rows:
        body = row.model_dump_json(indent=1).encode()
        try:
            registry.store.create(history_key(row.task, row.alias, row.seq), body)
        except PreconditionFailed:
            raise Terminal(
                f"{row.task}@{row.alias}: the store holds another promotion {row.seq} than the ledger, which "
                f"was restored from an older backup or is not this store's; `ptp doctor {row.task}` compares them"
            ) from None


def _project_pointer(registry: Registry, head: Promotion) -> list[Action]:
    for _ in range(POINTER_ATTEMPTS):
        try:
            return _write_pointer(registry, head)
        except PreconditionFailed:
            log.info("the pointer of %s@%s changed while it was replaced: reading it again", head.task, head.alias)
    raise LeaseHeld(
        f"{head.task}@{head.alias}: another process keeps writing {pointer_key(head.task, head.alias)}; find "
        "it, then `ptp reconcile`"
    )


def _write_pointer(registry: Registry, head: Promotion) -> list[Action]:
    key, body = (
        pointer_key(head.task, head.alias),
        Pointer(promotion=head, nonce=uuid.uuid4().hex).model_dump_json(indent=1).encode(),
    )
    wrote = [Action(task=head.task, what=f"pointer {head.alias} -> version {head.version} (seq {head.seq})")]
    try:
        stored = registry.store.read(key)
    except NotFound:
        registry.store.create(key, body)
        return wrote
    found = pointer_in(stored.body)
    known = found is not None and is_ledger_row(registry, found, head)
    if found and known and found.seq >= head.seq:
        return []
    if found and found.seq > head.seq and registry.store.exists(history_key(head.task, head.alias, found.seq)):
        raise Terminal(
            f"{head.task}@{head.alias}: the store knows promotion {found.seq} (version {found.version}, "
            f"{found.at}), the ledger only {head.seq}; "
            "was it restored from an older backup? `ptp doctor --rebuild-ledger` brings it up"
        )
    quarantined = [] if known else [_quarantine(registry, head, stored)]
    registry.store.replace(key, body, stored.etag)
    return quarantined + wrote


def pointer_in(body: bytes) -> Promotion | None:
    """The promotion that a pointer's bytes carry; None where they are no pointer."""
    try:
        return Pointer.model_validate_json(body).promotion
    except ValidationError:
        return None


def is_ledger_row(registry: Registry, found: Promotion, head: Promotion) -> bool:
    """Whether the ledger holds exactly that promotion of the head's alias."""
    return found == registry.ledger.promotion(head.task, head.alias, found.seq)


def _quarantine(registry: Registry, head: Promotion, stored: Stored) -> Action:
    key = quarantined_pointer_key(head.task, head.alias, stored.body)
    registry.store.create(key, stored.body)
    log.warning("the pointer of %s@%s is no row of the ledger; kept as %s and replaced", head.task, head.alias, key)
    return Action(task=head.task, what=f"pointer {head.alias} was no row of the ledger: kept as {key}")
