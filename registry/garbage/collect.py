"""Garbage collection: deletes what nothing needs. A tombstone precedes every deletion, and each manifest goes first.

Of a version, bytes, dossiers, plots and evaluation rows are deleted; its number, verdicts and figures stay in the
ledger, its name in the store, and its page in MLflow. That page says what was measured, which stays true. If it were
deleted, MLflow would give its number to another version. MLflow's copy of the bytes is MLflow's to keep or delete
(`mlflow gc`). Pointers in quarantine stay too.

Burying asks the ledger in one transaction whether anything needs the digest now; what is buried can be neither
published nor promoted. What the ledger does not know (servers' reports, manifests that were stored meanwhile) is asked
afterwards, when no publish can begin that would name the digest as a member. If a collector stood still for longer than
its tombstone lasts, so that a publish took over, it puts back what it deleted. Only a collector that stands still for
that long between a renewal and the next deletion, and is then killed before it can put anything back, leaves a version
without bytes; `ptp doctor` shows it.
"""

import logging
import uuid
from dataclasses import replace
from typing import NamedTuple

import stamina

from ptpipeline.errors import ArtifactError, LeaseHeld, NotFound, PreconditionFailed, PtpError, SettingsError, Transient
from ptpipeline.records import base
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.addresses import PromptObject, is_manifest, parse
from ptpipeline.storage.keys import (
    PROMPTS,
    checkpoint_key,
    manifest_key,
    probe_key,
    prompt_prefix,
    signatures_prefix,
    snapshot_prefix,
    task_prefix,
)
from ptpipeline.storage.objects import is_key
from ptpipeline.storage.signed import without_checks
from registry.failpoints import reached
from registry.garbage.plan import Collected, plan
from registry.garbage.roots import Retention, abandoned_before, prompts_in_use, prompts_served, snapshots_in_use
from registry.garbage.signatures import find_stale_signatures
from registry.ledger import tombstone
from registry.ledger.database import Database
from registry.ledger.tombstone import Needed, Tombstone, forget_unmarked
from registry.ledger.usage import Name, prompt_uses, rows_keys, snapshot_uses
from registry.lineage.ancestry import parts_of, read_manifests
from registry.registry import Registry

WAIT_SECONDS = tombstone.SECONDS + 5.0  # for the tombstone of another collector

MAX_SKEW_SECONDS = 300.0  # between this machine's clock and the store's

log = logging.getLogger(__name__)


class Collection(NamedTuple):
    """A collection that is under way; `store` reads bytes as they are, whoever signed them."""

    registry: Registry
    store: ObjectStore
    policy: Retention


def collect(registry: Registry, policy: Retention, apply: bool = False, task: str | None = None) -> list[Collected]:
    """Return what may go, of one task or all; with `apply` delete it and return what was deleted, which leaves out what
    somebody needed again meanwhile.

    After an interruption, the next call finishes what was begun; it waits until the killed process's tombstone expires.
    What cannot be deleted keeps nothing else, and is raised at the end.

    Raises SettingsError if the store knows more than the ledger or has another time than this machine, ArtifactError if
    a server's report cannot be read, ServiceUnavailable if ledger, store or MLflow does not answer.
    """
    store = without_checks(registry.store)
    bare = replace(registry, store=store)
    planned = plan(bare, policy, task)
    stale = find_stale_signatures(registry.ledger, store, task)
    if not apply:
        return planned + [signature.item for signature in stale]
    if policy.grace:  # else no age decides
        _check_clock(store, registry.ledger.database)
    registry.ledger.forget_intents(abandoned_before(policy))
    work = Collection(registry, store, policy)
    deleted, failures = list[Collected](), list[PtpError]()
    for item in planned:
        try:
            deleted += [item] if _collect(work, item) else []
        except PtpError as error:  # the others go all the same
            log.warning("%s %s is not collected: %s", item.what, item.digest[:12], error)
            failures.append(error)
    _spare(work, planned, task)
    forget_unmarked(registry.ledger.database)
    for signature in stale:
        store.delete(signature.key)
    if failures:
        raise failures[0]
    return deleted + [signature.item for signature in stale]


def _check_clock(store: ObjectStore, database: Database) -> None:
    """Raise SettingsError if this machine's clock is not the store's and the ledger's: the ages of objects and of what
    the ledger remembers would be wrong by as much.
    """
    key = probe_key(uuid.uuid4().hex, "clock")
    store.create(key, b"what time is it?")
    try:
        [listed] = store.list_objects(key.rpartition("/")[0])
    finally:
        store.delete(key)
    for told, whose in ((listed.modified, store.where), (database.time(), f"ledger {database.name}")):
        ahead = (base.read_clock() - told).total_seconds()
        if abs(ahead) > MAX_SKEW_SECONDS:
            raise SettingsError(
                f"the clock of this machine is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} that of "
                f"{whose}, so ages would be wrong and nothing is collected; set it right (NTP), then repeat"
            )


def _spare(work: Collection, planned: list[Collected], task: str | None) -> None:
    """Lift tombstones of versions that are whole and not planned: a killed collector did not touch them yet, or
    they are needed again.
    """
    whole = {
        Name(address.task, address.digest)
        for address in map(parse, work.store.keys(PROMPTS))
        if isinstance(address, PromptObject) and address.is_manifest
    }
    whole -= {Name(str(item.task), item.digest) for item in planned}
    for version in work.registry.ledger.versions(task, limit=None):
        name = Name(version.task, version.digest)
        grave = Tombstone(work.registry.ledger.database, *name)
        if version.collected and name in whole and _bury(grave, lambda _: False):
            _ = grave.lift() if work.store.exists(manifest_key(*name)) else grave.leave()


def _bury(grave: Tombstone, needed: Needed) -> bool:
    """Set the tombstone unless somebody needs the digest or another collector still has it; return whether it is ours.

    One that died leaves its tombstone until it expires: that is waited for, and then what it began is finished.
    """
    waiting = stamina.retry_context(on=LeaseHeld, attempts=None, timeout=WAIT_SECONDS, wait_initial=0.05, wait_max=1.0)
    try:
        for attempt in waiting:
            with attempt:
                return grave.bury(needed)
    except LeaseHeld as error:
        log.info("%s", error)
    return False


def _collect(work: Collection, item: Collected) -> bool:
    if item.task is None:
        work.store.delete(checkpoint_key(item.digest))
        return True
    name = Name(item.task, item.digest)
    grave = Tombstone(work.registry.ledger.database, *name)
    if not _bury(grave, _in_use(work, item, name)):
        log.info(
            "%s: %s %s is kept: it is needed again, or another process collects it",
            item.task,
            item.what,
            item.digest[:12],
        )
        return False
    reached("collect buried")
    if item.what != "snapshot" and _is_needed(work.store, name):
        interrupted = not work.store.exists(manifest_key(*name))
        _ = grave.leave() if interrupted else grave.lift()
        return False
    return _delete(work, item, grave)


def _in_use(work: Collection, item: Collected, name: Name) -> Needed:
    """Return the question to the ledger, asked within its transaction: does anything need that prompt or snapshot?"""
    if item.what == "snapshot":
        return lambda connection: name in snapshots_in_use(snapshot_uses(connection, name.task), work.policy)
    return lambda connection: name in prompts_in_use(prompt_uses(connection, name.task), work.policy)


def _is_needed(store: ObjectStore, name: Name) -> bool:
    """Whether a server names the prompt by now, or a prompt of its task that was stored meanwhile consists of it."""
    addresses = map(parse, store.keys(task_prefix(name.task)))
    stored = {Name(name.task, each.digest) for each in addresses if isinstance(each, PromptObject) and each.is_manifest}
    others = read_manifests(store, stored - {name}).values()
    return name in prompts_served(store) or any(other is None or name.digest in parts_of(other) for other in others)


def _delete(work: Collection, item: Collected, grave: Tombstone) -> bool:
    """Delete object by object while the tombstone is ours; return whether it was to the end."""
    bodies: dict[str, bytes] = {}
    for key in _keys(work, item):
        try:
            body = work.store.read(key).body
        except NotFound:
            continue
        except ArtifactError as error:  # too large for its kind, or a link: nobody could read it, nor count on it
            log.warning("%s; it is deleted, and cannot be put back", error)
            body = None
        if not grave.renew():
            return _put_back(work.store, item, bodies)
        if body is not None:
            bodies[key] = body
        work.store.delete(key)
        if is_manifest(key):
            reached("collect manifest deleted")
    reached("collect deleted")
    if not (grave.leave() if item.what == "version" else grave.lift()):
        return _put_back(work.store, item, bodies)
    log.info("%s: %s %s collected, %d bytes: %s", item.task, item.what, item.digest[:12], item.bytes, item.why)
    return True


def _keys(work: Collection, item: Collected) -> list[str]:
    """The keys of its objects: the manifest, then signatures, then its evaluation rows, then the others.

    While an object is left in its folder, the next collection finds it and ends what was begun: so what lies elsewhere
    goes before those.
    """
    task = str(item.task)
    if item.what == "snapshot":
        folder, rows = snapshot_prefix(task, item.digest), []
    else:
        folder, rows = prompt_prefix(task, item.digest), rows_keys(work.registry.ledger, task).get(item.digest, [])
    ours = sorted(key for key in work.store.keys(folder) if parse(key) is not None)
    manifest, others = [key for key in ours if is_manifest(key)], [key for key in ours if not is_manifest(key)]
    signatures = filter(is_key, work.store.keys(signatures_prefix(folder)))
    return [*manifest, *signatures, *sorted(rows), *others]


def _put_back(store: ObjectStore, item: Collected, bodies: dict[str, bytes]) -> bool:
    """Store the objects again: a publish took over while this process stood still, and counts on what we deleted."""
    log.warning(
        "%s: %s %s was published again while it was being deleted; %d objects are put back",
        item.task,
        item.what,
        item.digest[:12],
        len(bodies),
    )
    for key in reversed(bodies):  # the manifest last
        _create(store, key, bodies[key])
    return False


@stamina.retry(on=Transient, attempts=8, timeout=120)
def _create(store: ObjectStore, key: str, body: bytes) -> None:
    try:
        store.create(key, body)
    except PreconditionFailed:
        log.info("%s was written again meanwhile", key)
