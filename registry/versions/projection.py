"""Projections: let the object store's pointer and MLflow's alias show the ledger's head; may be repeated."""

import json
import logging
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import stamina

from ptpipeline.errors import ArtifactError, LeaseHeld, NotFound, PreconditionFailed, PtpError, SettingsError, Terminal
from ptpipeline.foreign import parse_record
from ptpipeline.records.versions import Pointer, Promotion
from ptpipeline.storage import ObjectStore, Stored
from ptpipeline.storage.keys import MOVED_KEY, history_key, pointer_key, quarantined_pointer_key
from ptpipeline.storage.objects import overwrite
from ptpipeline.storage.signed import holds, is_accepted, without_checks
from registry.failpoints import reached
from registry.ledger.lease import leased
from registry.mlflow.client import REQUEST_SECONDS
from registry.registry import Registry
from registry.versions.content import write_content
from registry.versions.mlflow_alias import Action, HeldAlias, describe_versions

LEASE_SECONDS = 3.0 * REQUEST_SECONDS
FOLLOW_SECONDS = 10.0  # that a promotion waits for another process which writes the same alias in MLflow
POINTER_ATTEMPTS = 5

log = logging.getLogger(__name__)


class StoredRow(NamedTuple):
    """A promotion as the store's history holds it."""

    key: str
    body: bytes


def project(registry: Registry, task: str, alias: str) -> list[Action]:
    """Let pointer and MLflow alias show the head of the alias; returns what had to be changed, nothing if all agree.

    The pointer needs no lease: a put takes place only over the pointer that was read, and none goes back to an earlier
    row. So readers never wait for a holder that died. What may be a person's edit of the MLflow alias stays:
    `mlflow_edit` judges it. Raises LeaseHeld if another process writes the same MLflow alias, ServiceUnavailable if the
    store or MLflow does not answer.
    """
    actions = _project_store(registry, _require_head(registry, task, alias))
    if registry.mlflow:
        with leased(registry.ledger.database, lease_name(task, alias), LEASE_SECONDS) as lease:
            head = _require_head(registry, task, alias)  # again: it may have moved before the lease was ours
            applied = registry.ledger.applied("mlflow", task, alias)
            actions += HeldAlias(registry, registry.mlflow, head, lease).follow()
            if applied is None or applied.seq < head.seq:
                describe_versions(registry, registry.mlflow, task)
            reached("alias described")
            registry.ledger.record_applied("mlflow", head)  # last: a run that is killed before repeats all of it
    return actions


def _require_head(registry: Registry, task: str, alias: str) -> Promotion:
    head = registry.ledger.head(task, alias)
    if head is None:
        raise NotFound(f"{task}@{alias}: this alias was never promoted")
    return head


def _project_store(registry: Registry, head: Promotion) -> list[Action]:
    applied = registry.ledger.applied("store", head.task, head.alias)
    _project_history(registry, head, applied.seq if applied else 0)
    reached("history written")
    actions = _project_pointer(registry, head)
    reached("pointer written")
    if actions or applied is None or applied.seq < head.seq:  # also after a run that died right behind its pointer
        tell_servers(registry.store)
    registry.ledger.record_applied("store", head)
    return actions


def follow(registry: Registry, head: Promotion) -> None:
    """`project` the head; it is committed already, so a failure only delays what others see, and is logged."""
    try:
        settle(registry, head, FOLLOW_SECONDS)
    except PtpError as error:
        log.warning(
            "%s@%s is version %d, but the store or MLflow does not show it yet (%s); run `ptp reconcile`",
            head.task,
            head.alias,
            head.version,
            error,
        )


def follow_heads(registry: Registry, task: str) -> None:
    """`follow` the heads of the task's aliases that somebody promoted and died before all saw it; the others cost one
    read of their pointer.
    """
    for head in registry.ledger.heads(task):
        try:
            finished = is_finished(registry, head) and is_stored(registry, head)
        except PtpError as error:
            log.warning("whether the store shows %s@%s is not known: %s", task, head.alias, error)
        else:
            if not finished:
                follow(registry, head)


def is_finished(registry: Registry, head: Promotion) -> bool:
    """Whether the ledger notes that store and MLflow were brought to the head."""
    targets = ("store", "mlflow") if registry.mlflow else ("store",)
    applied = [registry.ledger.applied(target, head.task, head.alias) for target in targets]
    return all(shown is not None and shown.seq >= head.seq for shown in applied)


def is_stored(registry: Registry, head: Promotion) -> bool:
    """Whether the pointer shows the head."""
    try:
        return pointer_in(registry.store.read(pointer_key(head.task, head.alias)).body) == head
    except (ArtifactError, NotFound):
        return False


def lease_name(task: str, alias: str) -> str:
    """Return the name of the lease that whoever writes this alias in MLflow has to hold."""
    return f"project {task}@{alias}"


def settle(registry: Registry, head: Promotion, wait: float) -> list[Action]:
    """`project` the head's alias; wait up to `wait` seconds for another process that projects it."""
    return wait_for_lease(lambda: project(registry, head.task, head.alias), wait)


def wait_for_lease(step: Callable[[], list[Action]], wait: float) -> list[Action]:
    """Return what the step did; repeat it for up to `wait` seconds while another process holds its lease."""
    for attempt in stamina.retry_context(on=LeaseHeld, attempts=None, timeout=wait, wait_initial=0.05, wait_max=1.0):
        with attempt:
            return step()
    return []


def attempt(task: str, step: Callable[[], list[Action]]) -> list[Action]:
    """Return what the step did, or an Action that says why it failed: one task's failure never stops another's."""
    try:
        return step()
    except PtpError as error:
        log.warning("reconcile of %s: %s", task, error)
        return [Action(task=task, what=str(error), done=False)]


# ---------------------------------------------------------------- the history and the pointer


def _project_history(registry: Registry, head: Promotion, done: int) -> None:
    """Store every promotion of the alias behind the first `done` that the store does not hold, each as an object."""
    if done >= head.seq:
        if registry.store.exists(history_key(head.task, head.alias, head.seq)):
            return
        done = 0
    write_history(registry, registry.ledger.history(head.task, head.alias)[done:])


def write_history(registry: Registry, rows: Sequence[Promotion]) -> None:
    """Store those promotions, in place of what readers refuse; Terminal if the store holds others of their numbers."""
    for row in rows:
        key, body = history_object(row)
        try:
            registry.store.create(key, body)
        except PreconditionFailed:
            if not holds(registry.store, key):
                write_content(registry.store, key, body)
                continue
            raise Terminal(
                f"{row.task}@{row.alias}: promotion {row.seq} in the store differs from the ledger's; the ledger was "
                f"restored from an older backup, or belongs to another store; `ptp doctor {row.task}` compares them"
            ) from None


def history_object(row: Promotion) -> StoredRow:
    """Return key and bytes of a promotion in the store."""
    return StoredRow(history_key(row.task, row.alias, row.seq), row.model_dump_json(indent=1).encode())


def _project_pointer(registry: Registry, head: Promotion) -> list[Action]:
    for _ in range(POINTER_ATTEMPTS):
        try:
            return _write_pointer(registry, head)
        except PreconditionFailed:
            log.info("the pointer of %s@%s changed while it was replaced: reading it again", head.task, head.alias)
    raise LeaseHeld(
        f"{head.task}@{head.alias}: another process keeps writing {pointer_key(head.task, head.alias)}; find "
        "it and stop it, then `ptp reconcile`"
    )


def _write_pointer(registry: Registry, head: Promotion) -> list[Action]:
    key, bare = pointer_key(head.task, head.alias), without_checks(registry.store)
    body = Pointer(promotion=head, nonce=uuid.uuid4().hex).model_dump_json(indent=1).encode()
    wrote = [Action(task=head.task, what=f"pointer {head.alias} -> version {head.version} (seq {head.seq})")]
    try:
        stored = bare.read(key)  # signed or not: it is held against the ledger
    except NotFound:
        registry.store.create(key, body)
        return wrote
    pointed = pointer_in(stored.body)
    known = pointed is not None and is_ledger_row(registry, pointed, head)
    accepted = is_accepted(registry.store, key, stored.body)
    if pointed and known and (pointed.seq > head.seq or (pointed.seq == head.seq and accepted)):
        return []
    ahead = pointed is not None and pointed.seq > head.seq and accepted
    if pointed and ahead and holds(registry.store, history_key(head.task, head.alias, pointed.seq)):
        raise Terminal(
            f"{head.task}@{head.alias}: the store knows promotion {pointed.seq} (version {pointed.version}, "
            f"{pointed.at}), the ledger only {head.seq}; "
            "was it restored from an older backup? `ptp doctor --rebuild-ledger` adds what it lost"
        )
    quarantined = [] if known else [_quarantine(registry, head, stored)]
    registry.store.replace(key, body, stored.etag)
    return quarantined + wrote


def tell_servers(store: ObjectStore) -> None:
    """Let servers look at the pointers, one of which changed: between two looks a minute apart they ask for this alone.

    Who loses to another writer has nothing to do: that one wrote after our pointer too. Who may not write here has
    promoted nevertheless.
    """
    try:
        with suppress(PreconditionFailed):
            overwrite(store, MOVED_KEY, json.dumps({"nonce": uuid.uuid4().hex}).encode())
    except SettingsError as error:
        log.warning("servers see this promotion within a minute instead of two seconds: %s", error)


def pointer_in(body: bytes) -> Promotion | None:
    """Return the promotion that a pointer's bytes hold; None if they are not a pointer."""
    try:
        return parse_record(Pointer, body, "pointer").promotion
    except ArtifactError:
        return None


def is_ledger_row(registry: Registry, promotion: Promotion, head: Promotion) -> bool:
    """Whether the ledger holds exactly that promotion of the head's alias."""
    return promotion == registry.ledger.promotion(head.task, head.alias, promotion.seq)


def _quarantine(registry: Registry, head: Promotion, stored: Stored) -> Action:
    key = quarantined_pointer_key(head.task, head.alias, stored.body)
    registry.store.create(key, stored.body)
    log.warning("the pointer of %s@%s is not a row of the ledger; kept as %s and replaced", head.task, head.alias, key)
    return Action(task=head.task, what=f"pointer {head.alias} was not a row of the ledger: kept as {key}")
