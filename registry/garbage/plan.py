"""What is kept, and so what may go: plans a garbage collection from the ledger and a listing of the store; changes
nothing.
"""

import logging
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Literal, NamedTuple

from ptpipeline.errors import SettingsError
from ptpipeline.records import PromptManifest, PromptVersion, Record
from ptpipeline.storage import Listed, ObjectStore
from ptpipeline.storage.addresses import SnapshotObject, StoredCheckpoint, is_manifest, parse
from ptpipeline.storage.keys import CHECKPOINTS, SNAPSHOTS, reports_prefix
from registry.garbage.roots import Retention, held_elsewhere, pointed, prompts_in_use, snapshots_in_use
from registry.ledger.usage import Name, prompt_uses, rows_keys, snapshot_links, snapshot_uses, trainings
from registry.lineage.ancestry import read_manifests, snapshots_of, source_snapshots_of, with_parts
from registry.listing import TaskListing, list_tasks
from registry.registry import Registry

log = logging.getLogger(__name__)


class Collected(Record):
    """One thing that a garbage collection deleted, or would. `task` is None for a checkpoint, which several may
    share.
    """

    task: str | None
    digest: str
    version: int | None
    what: Literal["version", "orphan", "snapshot", "checkpoint"]
    bytes: int
    why: str


class Kept(NamedTuple):
    """Prompts and snapshots that stay, every stored manifest that can be read, and tasks with one that cannot."""

    prompts: set[Name]
    snapshots: set[Name]
    manifests: dict[Name, PromptManifest]
    unclear: set[str]


def plan(registry: Registry, policy: Retention, task: str | None = None) -> list[Collected]:
    """What may go, of one task or all, in the order in which it has to: what consists of others before those.

    Raises SettingsError where the store knows more than the ledger, ArtifactError for an unreadable server report,
    ServiceUnavailable.
    """
    store, ledger = registry.store, registry.ledger
    # before the ledger is asked: what is named in the store stood there first
    folders = {listing.task: listing for listing in list_tasks(store)}
    snapshots = _grouped(store.listed(SNAPSHOTS))
    versions = {
        name: list(rows) for name, rows in groupby(ledger.versions(limit=None), key=lambda version: version.task)
    }
    everything = sorted({*folders, *versions})
    for name in everything:  # of all tasks: a version of one may descend from another's
        _check_ledger(registry, name, folders.get(name, TaskListing(name)), versions.get(name, []))
    wanted = [name for name in everything if task in (None, name)]
    kept = _kept(registry, policy, folders)
    found: list[Collected] = []
    for name in wanted:
        if name in kept.unclear:
            log.warning(
                "%s: nothing of it is collected while a manifest cannot be read: nobody knows what that prompt "
                "consists of; `ptp doctor %s`",
                name,
                name,
            )
            continue
        found += _prompts(
            policy,
            name,
            (folders.get(name, TaskListing(name)), versions.get(name, [])),
            kept,
            _rows_sizes(registry, name),
        )
    alive = (kept.prompts | set(kept.manifests)) - {Name(item.task or "", item.digest) for item in found}
    needed = kept.snapshots | snapshots_of(alive, kept.manifests, snapshot_links(ledger))
    needed |= source_snapshots_of(alive, trainings(ledger), snapshots)
    spare = {name: objects for name, objects in snapshots.items() if name not in needed and task in (None, name[0])}
    found += [
        _snapshot(name, objects)
        for name, objects in spare.items()
        if name[0] not in kept.unclear and not _young(policy, objects)
    ]
    return found + ([] if task else _checkpoints(store, policy))


# ---------------------------------------------------------------- what is kept


def _kept(registry: Registry, policy: Retention, folders: Mapping[str, TaskListing]) -> Kept:
    """Roots, whatever is young and no version, and with each its members and parents, and theirs."""
    stored = {
        Name(task, digest): objects for task, folder in folders.items() for digest, objects in folder.prompts.items()
    }
    complete = [name for name, objects in stored.items() if any(is_manifest(item.key) for item in objects)]
    read = read_manifests(registry.store, complete)
    manifests = {name: manifest for name, manifest in read.items() if manifest is not None}
    with registry.ledger.database.reading() as connection:
        uses = prompt_uses(connection)
        snapshots = snapshots_in_use(snapshot_uses(connection), policy)
    prompts = prompts_in_use(uses, policy) | held_elsewhere(registry.store)
    registered = {*uses.versions.values()}
    for task, folder in folders.items():
        prompts |= pointed(registry, task, folder.pointers)
    prompts |= {name for name, objects in stored.items() if name not in registered and _young(policy, objects)}
    return Kept(
        with_parts(prompts, manifests),
        snapshots,
        manifests,
        {task for (task, _), manifest in read.items() if manifest is None},
    )


def _check_ledger(registry: Registry, task: str, folder: TaskListing, versions: list[PromptVersion]) -> None:
    """A ledger restored from an older backup, or another store's, takes registered versions for orphans."""
    newer = {named.number for named in folder.versions.values()} - {version.number for version in versions}
    heads = {head.alias: head.seq for head in registry.ledger.heads(task)}
    moved = sorted(row.alias for row in folder.history.values() if row.seq > heads.get(row.alias, 0))
    if newer or moved:
        what = f"version {min(newer)}" if newer else f"promotions of {moved[0]}"
        raise SettingsError(
            f"{task}: {registry.store.url} knows {what}, the ledger {registry.ledger.database.name} does not: "
            "was it restored from an older backup, or is it another store's? "
            "Nothing is collected; `ptp doctor --rebuild-ledger` brings it up"
        )


# ---------------------------------------------------------------- what may go


def _prompts(
    policy: Retention, task: str, there: tuple[TaskListing, list[PromptVersion]], kept: Kept, rows: Mapping[str, int]
) -> list[Collected]:
    folder, versions = there
    registered = {version.digest for version in versions}
    found = []
    for version in versions:
        size = sum(item.bytes for item in folder.prompts.get(version.digest, [])) + rows.get(version.digest, 0)
        if (task, version.digest) not in kept.prompts and (size or not version.collected):
            why = (
                "its deletion was interrupted"
                if version.collected
                else f"never promoted, and older than the newest {policy.candidates}"
            )
            found.append(
                Collected(task=task, digest=version.digest, version=version.number, what="version", bytes=size, why=why)
            )
    for digest, objects in sorted(folder.prompts.items()):
        if digest not in registered and (task, digest) not in kept.prompts:
            size = sum(item.bytes for item in objects) + rows.get(digest, 0)
            why = (
                "no version, and part of none that is kept"
                if (task, digest) in kept.manifests
                else "stored by half, and being published by nobody"
            )
            found.append(Collected(task=task, digest=digest, version=None, what="orphan", bytes=size, why=why))
    return sorted(found, key=lambda item: not _has_members(kept.manifests.get(Name(task, item.digest))))


def _has_members(manifest: PromptManifest | None) -> bool:
    return bool(manifest and (manifest.members or manifest.method == "multitask"))


def _rows_sizes(registry: Registry, task: str) -> dict[str, int]:
    """Bytes of the stored evaluation rows of each prompt of the task."""
    sizes = {item.key: item.bytes for item in registry.store.listed(reports_prefix(task))}
    return {digest: sum(sizes.get(key, 0) for key in keys) for digest, keys in rows_keys(registry.ledger, task).items()}


def _snapshot(name: Name, objects: list[Listed]) -> Collected:
    why = "no version that is kept was trained or measured on it"
    return Collected(
        task=name[0], digest=name[1], version=None, what="snapshot", bytes=sum(item.bytes for item in objects), why=why
    )


def _checkpoints(store: ObjectStore, policy: Retention) -> list[Collected]:
    """A training in progress replaces its checkpoint every minute or so; deleting one costs its work, never its
    result.
    """
    found = []
    for item in store.listed(CHECKPOINTS):
        address = parse(item.key)
        if isinstance(address, StoredCheckpoint) and not policy.fresh(item.modified):
            why = f"of a training that was given up, last written {item.modified:%Y-%m-%d %H:%M} UTC"
            found.append(
                Collected(task=None, digest=address.digest, version=None, what="checkpoint", bytes=item.bytes, why=why)
            )
    return found


# ---------------------------------------------------------------- the listing


def _grouped(items: Iterable[Listed]) -> dict[Name, list[Listed]]:
    """Return the objects of snapshots by task and digest."""
    grouped: dict[Name, list[Listed]] = {}
    for item in items:
        address = parse(item.key)
        if isinstance(address, SnapshotObject):
            grouped.setdefault(Name(address.task, address.digest), []).append(item)
    return grouped


def _young(policy: Retention, objects: Iterable[Listed]) -> bool:
    return any(policy.fresh(item.modified) for item in objects)
