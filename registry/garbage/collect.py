"""Garbage collection: deletes what nothing needs, a tombstone ahead of every deletion and each manifest first.

A version's bytes, dossiers, plots and evaluation rows go; its number, verdicts and figures stay in the ledger, its name
in the store, and its page in MLflow. That page says what was measured, which stays true; deleted, MLflow would give its
number to another, and the copy of the bytes there is MLflow's to keep or delete (`mlflow gc`). Pointers that were
quarantined stay too.

Burying asks the ledger in one transaction whether anything needs the digest now, and what is buried can be neither
published nor promoted. What the ledger does not know, servers' reports and manifests stored meanwhile, is asked behind
it: no publish that would name the digest as a member can begin then. A collector that slept past its tombstone, so that
a publish took over, puts back what it deleted. Only one that sleeps between a renewal and the deletion behind it, for
longer than a tombstone's life, and is then killed before it can put back, leaves a version without bytes, which `ptp
doctor` shows.
"""

import logging
from typing import NamedTuple

import stamina

from ptpipeline.errors import NotFound, PreconditionFailed, Transient
from ptpipeline.prompts.signature import SignedStore
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.addresses import PromptObject, is_manifest, parse
from ptpipeline.storage.keys import PROMPTS, checkpoint_key, manifest_key, prompt_prefix, snapshot_prefix, task_prefix
from registry.failpoints import reached
from registry.garbage.plan import Collected, plan
from registry.garbage.roots import Retention, abandoned, held_elsewhere, prompts_in_use, snapshots_in_use
from registry.ledger.tombstone import Needed, Tombstone, forget_unmarked
from registry.ledger.usage import Name, prompt_uses, rows_keys, snapshot_uses
from registry.lineage.ancestry import parts_of, read_manifests
from registry.registry import Registry

log = logging.getLogger(__name__)


class Collection(NamedTuple):
    """A collection that is under way; `store` shows bytes as they lie there, whoever signed them."""

    registry: Registry
    store: ObjectStore
    policy: Retention


def collect(registry: Registry, policy: Retention, apply: bool = False, task: str | None = None) -> list[Collected]:
    """What may go, of one task or all; with `apply` what was deleted, less what somebody needed again meanwhile.

    Run again after an interruption, it finishes what was begun, once the tombstone of the killed process has expired.
    Raises SettingsError where the store knows more than the ledger, ArtifactError where a server's report cannot be
    read, ServiceUnavailable where ledger, store or MLflow do not answer.
    """
    store = registry.store.unverified if isinstance(registry.store, SignedStore) else registry.store
    bare = Registry(registry.ledger, store, registry.mlflow)
    planned = plan(bare, policy, task)
    if not apply:
        return planned
    registry.ledger.forget_intents(abandoned(policy))
    done = [item for item in planned if _collected(Collection(registry, store, policy), item)]
    _spare(Collection(registry, store, policy), planned, task)
    forget_unmarked(registry.ledger.database)
    return done


def _spare(work: Collection, planned: list[Collected], task: str | None) -> None:
    """Give back what a killed collector buried and did not touch yet, and what is to stay by now: a server names it, or
    more are kept.
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
        if version.collected and name in whole and grave.bury(lambda _: False):
            _ = grave.lift() if work.store.exists(manifest_key(*name)) else grave.leave()


def _collected(work: Collection, item: Collected) -> bool:
    if item.task is None:
        work.store.delete(checkpoint_key(item.digest))
        return True
    name = Name(item.task, item.digest)
    grave = Tombstone(work.registry.ledger.database, *name)
    if not grave.bury(_in_use(work, item, name)):
        log.info(
            "%s: %s %s is needed again, or being collected already: left alone", item.task, item.what, item.digest[:12]
        )
        return False
    reached("collect buried")
    if item.what != "snapshot" and _needed(work.store, name):
        interrupted = not work.store.exists(manifest_key(*name))
        _ = grave.leave() if interrupted else grave.lift()
        return False
    return _deleted(work, item, grave)


def _in_use(work: Collection, item: Collected, name: Name) -> Needed:
    """What asks the ledger, within its transaction, whether anything needs that prompt or snapshot."""
    if item.what == "snapshot":
        return lambda connection: name in snapshots_in_use(snapshot_uses(connection, name.task), work.policy)
    return lambda connection: name in prompts_in_use(prompt_uses(connection, name.task), work.policy)


def _needed(store: ObjectStore, name: Name) -> bool:
    """Whether a server reports the prompt by now, or another of its task that is stored by now consists of it."""
    addresses = map(parse, store.keys(task_prefix(name.task)))
    stored = {Name(name.task, each.digest) for each in addresses if isinstance(each, PromptObject) and each.is_manifest}
    others = read_manifests(store, stored - {name}).values()
    return name in held_elsewhere(store) or any(other is None or name.digest in parts_of(other) for other in others)


def _deleted(work: Collection, item: Collected, grave: Tombstone) -> bool:
    """Delete object by object while the tombstone is ours; whether it was to the end."""
    bodies: dict[str, bytes] = {}
    for key in _keys(work, item):
        try:
            body = work.store.read(key).body
        except NotFound:
            continue
        if not grave.renew():
            return _put_back(work.store, item, bodies)
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
    """Where its bytes lie now: the manifest, then the other objects, then its evaluation rows."""
    task = str(item.task)
    if item.what == "snapshot":
        folder, rows = snapshot_prefix(task, item.digest), []
    else:
        folder, rows = prompt_prefix(task, item.digest), rows_keys(work.registry.ledger, task).get(item.digest, [])
    return sorted(work.store.keys(folder), key=lambda key: not is_manifest(key)) + sorted(rows)


def _put_back(store: ObjectStore, item: Collected, bodies: dict[str, bytes]) -> bool:
    """A publish took over while this process slept: it verified bytes that we deleted behind its back."""
    log.warning(
        "%s: %s %s was published anew while it was being deleted; %d objects are put back",
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
        log.info("%s was written anew meanwhile", key)
