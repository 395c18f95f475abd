"""Plans a garbage collection from the ledger and a listing of the store: what is kept, and so what may go. It changes
nothing.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Literal, NamedTuple

from ptpipeline.errors import SettingsError
from ptpipeline.records.base import Record
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.versions import PromptVersion
from ptpipeline.storage import Listed, ObjectStore
from ptpipeline.storage.addresses import SnapshotObject, StoredCheckpoint, is_manifest, parse
from ptpipeline.storage.keys import CHECKPOINTS, SNAPSHOTS, reports_prefix
from registry.garbage.roots import Retention, prompts_aliased, prompts_in_use, prompts_served, snapshots_in_use
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
    what: Literal["version", "orphan", "snapshot", "checkpoint", "signature"]
    bytes: int
    why: str


class Kept(NamedTuple):
    """Prompts and snapshots that stay, every stored manifest that can be read, and tasks with one that cannot
    (`unclear`).
    """

    prompts: set[Name]
    snapshots: set[Name]
    manifests: dict[Name, PromptManifest]
    unclear: set[str]


class _Task(NamedTuple):
    """What store and ledger hold of a task."""

    name: str
    folder: TaskListing
    versions: list[PromptVersion]


def plan(registry: Registry, policy: Retention, task: str | None = None) -> list[Collected]:
    """Return what may go, of one task or all, in the order in which it must be deleted: a whole before its parts.

    Raises SettingsError if the store knows more than the ledger, ArtifactError if a server's report cannot be read,
    ServiceUnavailable.
    """
    # the store is listed before the ledger is read, because the ledger knows of a name before the store does
    folders = {listing.task: listing for listing in list_tasks(registry.store)}
    snapshots = _group_snapshots(registry.store.list_objects(SNAPSHOTS))
    versions = {
        name: list(rows)
        for name, rows in groupby(registry.ledger.versions(limit=None), key=lambda version: version.task)
    }
    tasks = [
        _Task(name, folders.get(name, TaskListing(name)), versions.get(name, []))
        for name in sorted({*folders, *versions})
    ]
    for each in tasks:  # all, because a version of one task may descend from another's
        _check_ledger(registry, each)
        for key in each.folder.malformed():
            log.warning("%s/%s is no object of the registry; it stays", registry.store.url, key)
    kept = _find_kept(registry, policy, folders)
    wanted = [each for each in tasks if task in (None, each.name)]
    garbage = [item for each in wanted for item in _prompts(registry, policy, each, kept)]
    alive = (kept.prompts | set(kept.manifests)) - {Name(item.task or "", item.digest) for item in garbage}
    needed = kept.snapshots | snapshots_of(alive, kept.manifests, snapshot_links(registry.ledger))
    needed |= source_snapshots_of(alive, trainings(registry.ledger), snapshots)
    garbage += [
        _snapshot(name, objects)
        for name, objects in snapshots.items()
        if name not in needed
        and task in (None, name.task)
        and name.task not in kept.unclear
        and not _is_young(policy, objects)
    ]
    return garbage + ([] if task else _checkpoints(registry.store, policy))


# ---------------------------------------------------------------- what is kept


def _find_kept(registry: Registry, policy: Retention, folders: Mapping[str, TaskListing]) -> Kept:
    """The roots, what is young and no version, and all that these consist of or descend from."""
    stored = {
        Name(task, digest): objects for task, folder in folders.items() for digest, objects in folder.prompts.items()
    }
    complete = [name for name, objects in stored.items() if any(is_manifest(item.key) for item in objects)]
    read = read_manifests(registry.store, complete)
    manifests = {name: manifest for name, manifest in read.items() if manifest is not None}
    with registry.ledger.database.reading() as connection:
        uses = prompt_uses(connection)
        snapshots = snapshots_in_use(snapshot_uses(connection), policy)
    prompts = prompts_in_use(uses, policy) | prompts_served(registry.store)
    registered = {*uses.versions.values()}
    for task, folder in folders.items():
        prompts |= prompts_aliased(registry, task, folder.pointers)
    prompts |= {name for name, objects in stored.items() if name not in registered and _is_young(policy, objects)}
    return Kept(
        with_parts(prompts, manifests),
        snapshots,
        manifests,
        {name.task for name, manifest in read.items() if manifest is None},
    )


def _check_ledger(registry: Registry, task: _Task) -> None:
    """Raise SettingsError if the store knows more: an older ledger, or another store's, takes versions for orphans."""
    newer = {named.number for named in task.folder.versions.values()} - {version.number for version in task.versions}
    heads = {head.alias: head.seq for head in registry.ledger.heads(task.name)}
    moved = sorted(row.alias for row in task.folder.history.values() if row.seq > heads.get(row.alias, 0))
    if newer or moved:
        what = f"version {min(newer)}" if newer else f"promotions of {moved[0]}"
        raise SettingsError(
            f"{task.name}: {registry.store.url} knows {what}, the ledger {registry.ledger.database.name} does not: "
            "was it restored from an older backup, or is it another store's? "
            "Nothing is collected; `ptp doctor --rebuild-ledger` adds what it lost"
        )


# ---------------------------------------------------------------- what may go


def _prompts(registry: Registry, policy: Retention, task: _Task, kept: Kept) -> list[Collected]:
    """Versions and orphans of the task, a whole before its parts; nothing if a manifest of it cannot be read."""
    if task.name in kept.unclear:
        log.warning(
            "%s: nothing of this task is collected, because a manifest cannot be read, so that nobody knows what "
            "that prompt consists of; `ptp doctor %s` names it",
            task.name,
            task.name,
        )
        return []
    sizes = _sizes(registry, task)
    garbage = [*_versions(policy, task, kept, sizes), *_orphans(task, kept, sizes)]
    return sorted(garbage, key=lambda item: not _has_members(kept.manifests.get(Name(task.name, item.digest))))


def _sizes(registry: Registry, task: _Task) -> Counter[str]:
    """The stored bytes of each prompt and of its evaluation rows, by digest."""
    stored = {item.key: item.bytes for item in registry.store.list_objects(reports_prefix(task.name))}
    sizes = Counter({digest: sum(item.bytes for item in objects) for digest, objects in task.folder.prompts.items()})
    for digest, keys in rows_keys(registry.ledger, task.name).items():
        sizes[digest] += sum(stored.get(key, 0) for key in keys)
    return sizes


def _versions(policy: Retention, task: _Task, kept: Kept, sizes: Counter[str]) -> Iterator[Collected]:
    for version in task.versions:
        size = sizes[version.digest]
        if Name(task.name, version.digest) not in kept.prompts and (size or not version.collected):
            yield Collected(
                task=task.name,
                digest=version.digest,
                version=version.number,
                what="version",
                bytes=size,
                why="its deletion was interrupted"
                if version.collected
                else f"never promoted, and older than the newest {policy.candidates}",
            )


def _orphans(task: _Task, kept: Kept, sizes: Counter[str]) -> Iterator[Collected]:
    registered = {version.digest for version in task.versions}
    for digest in sorted(task.folder.prompts.keys() - registered):
        name = Name(task.name, digest)
        if name not in kept.prompts:
            yield Collected(
                task=task.name,
                digest=digest,
                version=None,
                what="orphan",
                bytes=sizes[digest],
                why="no version, and part of none that is kept"
                if name in kept.manifests
                else "stored incompletely, and no publish of it is under way",
            )


def _has_members(manifest: PromptManifest | None) -> bool:
    return bool(manifest and (manifest.members or manifest.method == "multitask"))


def _snapshot(name: Name, objects: list[Listed]) -> Collected:
    return Collected(
        task=name.task,
        digest=name.digest,
        version=None,
        what="snapshot",
        bytes=sum(item.bytes for item in objects),
        why="no version that is kept was trained or measured on it",
    )


def _checkpoints(store: ObjectStore, policy: Retention) -> list[Collected]:
    """Checkpoints that no training replaced within the grace period; one in progress does so every minute or so.

    Deleting one costs its work, never its result.
    """
    garbage = []
    for item in store.list_objects(CHECKPOINTS):
        address = parse(item.key)
        if isinstance(address, StoredCheckpoint) and not policy.is_fresh(item.modified):
            why = f"of a training that was given up; last written {item.modified:%Y-%m-%d %H:%M} UTC"
            garbage.append(
                Collected(task=None, digest=address.digest, version=None, what="checkpoint", bytes=item.bytes, why=why)
            )
    return garbage


# ---------------------------------------------------------------- the listing


def _group_snapshots(items: Iterable[Listed]) -> dict[Name, list[Listed]]:
    """The objects of snapshots, by task and digest."""
    objects: dict[Name, list[Listed]] = {}
    for item in items:
        address = parse(item.key)
        if isinstance(address, SnapshotObject):
            objects.setdefault(Name(address.task, address.digest), []).append(item)
        else:
            log.warning("%s is no object of a snapshot; it stays", item.key)
    return objects


def _is_young(policy: Retention, objects: Iterable[Listed]) -> bool:
    return any(policy.is_fresh(item.modified) for item in objects)
