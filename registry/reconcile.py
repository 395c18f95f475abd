"""Projections: bringing the object store's pointer and MLflow's alias to the ledger's head, as often as needed."""

import hashlib
import logging
import uuid
from collections.abc import Callable
from functools import partial

import stamina
from pydantic import ValidationError

from ptpipeline.errors import LeaseHeld, NotFound, PreconditionFailed, PtpError, Terminal
from ptpipeline.records import Pointer, Promotion, PromptVersion, Record, history_key, pointer_key
from ptpipeline.storage import Stored
from registry.lease import Lease, leased
from registry.mlflow_store import REQUEST_SECONDS, MlflowStore
from registry.publish import entry_of, name_version
from registry.registry import Registry
from registry.steps import reached

LEASE_SECONDS = 3.0 * REQUEST_SECONDS
POINTER_ATTEMPTS = 5

log = logging.getLogger(__name__)


class Action(Record):
    """One thing that a projection or a reconcile did, or could not do (then `done` is False and `what` says why)."""

    task: str
    what: str
    done: bool = True


def project(registry: Registry, task: str, alias: str) -> list[Action]:
    """Let pointer and MLflow alias show the head of the alias; returns what had to be changed, nothing where all agrees.

    Raises LeaseHeld where another process projects the same alias, ServiceUnavailable where the store or MLflow does
    not answer.
    """
    with leased(registry.ledger.database, f"project {task}@{alias}", LEASE_SECONDS) as lease:
        head = registry.ledger.head(task, alias)
        if head is None:
            raise NotFound(f"{task}@{alias}: this alias was never promoted")
        _project_history(registry, head)
        reached("history written")
        actions = _project_pointer(registry, head)
        reached("pointer written")
        registry.ledger.record_applied("store", head)
        if registry.mlflow:
            actions += _project_alias(registry, registry.mlflow, head, lease)
            registry.ledger.record_applied("mlflow", head)
    return actions


def reconcile(registry: Registry, task: str | None = None, wait: float = LEASE_SECONDS + 5) -> list[Action]:
    """Finish what was interrupted and replay every projection; what cannot be mended now is an Action not done.

    A lease that a killed process left behind is waited for, `wait` seconds at most per alias.
    """
    interrupted = [(intent.task, f"publish of {intent.digest[:12]} was interrupted; `ptp run {intent.task}` finishes it") for intent in registry.ledger.intents(task)]
    actions = [Action(task=name, what=what, done=False) for name, what in interrupted]
    for name in registry.ledger.tasks() if task is None else [task]:
        actions += _attempt(name, partial(_restore_names, registry, name))
        if registry.mlflow:
            actions += _attempt(name, partial(_restore_versions, registry, registry.mlflow, name))
    for head in registry.ledger.heads(task):
        actions += _attempt(head.task, partial(settle, registry, head, wait))
    return actions


def settle(registry: Registry, head: Promotion, wait: float) -> list[Action]:
    """`project` the head's alias, waiting up to `wait` seconds for another process that is at it."""
    for attempt in stamina.retry_context(on=LeaseHeld, attempts=None, timeout=wait, wait_initial=0.05, wait_max=1.0):
        with attempt:
            return project(registry, head.task, head.alias)
    return []


def _attempt(task: str, step: Callable[[], list[Action]]) -> list[Action]:
    """One task's failure never stops another's."""
    try:
        return step()
    except PtpError as error:
        log.warning("reconcile of %s: %s", task, error)
        return [Action(task=task, what=str(error), done=False)]


def _restore_names(registry: Registry, task: str) -> list[Action]:
    versions = registry.ledger.versions(task, limit=None)
    return [Action(task=task, what=f"version {version.number} named in the store") for version in versions if name_version(registry.store, version)]


def _restore_versions(registry: Registry, mlflow: MlflowStore, task: str) -> list[Action]:
    """Bring versions that MLflow lost, or never had, there in the ledger's order."""
    shown = set(mlflow.digests(task).values())
    missing = [version for version in reversed(registry.ledger.versions(task, limit=None)) if version.digest not in shown]
    return [action for version in missing for action in _attempt(task, partial(_restore, registry, mlflow, version))]


def _restore(registry: Registry, mlflow: MlflowStore, version: PromptVersion) -> list[Action]:
    mlflow.describe(entry_of(registry, version.task, version.digest), version)
    return [Action(task=version.task, what=f"version {version.number} registered in MLflow")]


# ---------------------------------------------------------------- the history and the pointer


def _project_history(registry: Registry, head: Promotion) -> None:
    """Every promotion of the alias that the store does not hold yet, as an object of its own."""
    applied = registry.ledger.applied("store", head.task, head.alias)
    if applied and applied.seq >= head.seq and registry.store.exists(history_key(head.task, head.alias, head.seq)):
        return
    for row in registry.ledger.history(head.task, head.alias)[applied.seq if applied else 0 :]:
        body = row.model_dump_json(indent=1).encode()
        try:
            registry.store.create(history_key(row.task, row.alias, row.seq), body)
        except PreconditionFailed:
            raise Terminal(
                f"{row.task}@{row.alias}: the store holds another promotion {row.seq} than the ledger, which was restored from an older backup or is not this store's; `ptp doctor {row.task}` compares them"
            ) from None


def _project_pointer(registry: Registry, head: Promotion) -> list[Action]:
    for _ in range(POINTER_ATTEMPTS):
        try:
            return _write_pointer(registry, head)
        except PreconditionFailed:
            log.info("the pointer of %s@%s changed while it was replaced: reading it again", head.task, head.alias)
    raise LeaseHeld(f"{head.task}@{head.alias}: another process keeps writing {pointer_key(head.task, head.alias)}; find it, then `ptp reconcile`")


def _write_pointer(registry: Registry, head: Promotion) -> list[Action]:
    key, body = pointer_key(head.task, head.alias), Pointer(promotion=head, nonce=uuid.uuid4().hex).model_dump_json(indent=1).encode()
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
    key = f"prompts/{head.task}/quarantine/{head.alias}-{hashlib.sha256(stored.body).hexdigest()[:16]}.json"
    registry.store.create(key, stored.body)
    log.warning("the pointer of %s@%s is no row of the ledger; kept as %s and replaced", head.task, head.alias, key)
    return Action(task=head.task, what=f"pointer {head.alias} was no row of the ledger: kept as {key}")


# ---------------------------------------------------------------- the MLflow alias


def _project_alias(registry: Registry, mlflow: MlflowStore, head: Promotion, lease: Lease) -> list[Action]:
    actions: list[Action] = []
    number = mlflow.find(head.task, head.digest)
    if number is None:
        actions += _restore(registry, mlflow, registry.ledger.version(head.task, head.version))
        number = mlflow.ensure(entry_of(registry, head.task, head.digest))
    if mlflow.aliases(head.task).get(head.alias) != number:
        lease.renew()  # MLflow's alias has no conditional write: be sure that nobody took over meanwhile
        mlflow.set_alias(head.task, head.alias, number)
        actions.append(Action(task=head.task, what=f"MLflow alias {head.alias} -> version {head.version}"))
    lease.renew()
    return actions
