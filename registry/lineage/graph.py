"""Every prompt that the ledger registered or the store holds, with what it descends from and which snapshots it saw."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ptpipeline.data.snapshot import read_snapshot
from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.records.data import Snapshot
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.storage.keys import PROMPTS, SNAPSHOTS, manifest_key
from registry.ledger.usage import Name, Training, registrations
from registry.lineage.ancestry import (
    Relation,
    combination,
    is_shared,
    read_manifests,
    relation_of,
    sources_in,
    stored_names,
)
from registry.listing import ask_all
from registry.registry import Registry

log = logging.getLogger(__name__)


class Parent(NamedTuple):
    """A prompt that another descends from or consists of, and what it is to that one."""

    relation: Relation
    name: Name


@dataclass(frozen=True)
class Graph:
    """The prompts by name, and by digest in `homes`.

    `snapshots` are those that the store holds whole, by task; `shared_by` teacher -> the shared prompt that it taught;
    `collected` are prompts whose bytes were deleted.
    """

    homes: dict[str, Name]
    versions: dict[Name, int]
    manifests: dict[Name, PromptManifest]
    snapshots: dict[str, list[Name]]
    records: dict[Name, Snapshot]
    trainings: dict[Name, Training]
    shared_by: dict[Name, Name]
    collected: set[Name]

    def find_seen(self, name: Name) -> list[Name]:
        """Return the snapshots of the prompt's own rows; none if they are not known any more.

        If no snapshots of a shared prompt's sources make its own together, it may have been trained on one that is
        gone: then all of theirs, after its own, which names no snapshot and so counts as unknown.
        """
        manifest, training = self.manifests.get(name), self.trainings.get(name)
        digest = manifest.snapshot if manifest else training.snapshot if training else ""
        own, sources = Name(name.task, digest), self._sources(name)
        if own in self.records or not sources:
            return [own] if digest else []
        stored = [self.snapshots.get(source, []) for source in sources]
        return combination(digest, stored) or [own, *(snapshot for source in stored for snapshot in source)]

    def is_imported(self, name: Name) -> bool:
        """Return whether the prompt was trained elsewhere, so that its rows are not known."""
        training = self.trainings.get(name)
        return training is not None and training.steps == 0

    def parents(self, name: Name) -> list[Parent]:
        """Return what the prompt descends from and consists of."""
        manifest = self.manifests.get(name)
        if manifest is None:
            return []
        members = manifest.members.digests if manifest.members else ()
        return [Parent("member", Name(name.task, digest)) for digest in members] + [
            Parent(relation_of(manifest), self._home(name.task, digest)) for digest in manifest.parents
        ]

    def source(self, name: Name) -> str | None:
        """Return where the prompt's own rows came from, as far as the store knows."""
        own = set(self.find_seen(name))
        known = (self.records[snapshot] for snapshot in self.snapshots.get(name.task, []) if snapshot in own)
        return next((snapshot.source for snapshot in known), None)

    def _sources(self, name: Name) -> list[str]:
        """The tasks that a shared prompt, or a teacher of one, was trained for."""
        training = self.trainings.get(self.shared_by.get(name, name))
        return sources_in(name.task, training.trials) if training else []

    def _home(self, task: str, digest: str) -> Name:
        """The parent of that digest: the same task's if it has one, else that of the task that does."""
        own = Name(task, digest)
        return own if own in self.manifests else self.homes.get(digest, own)


def read_graph(registry: Registry) -> Graph:
    """Read the graph from ledger and store.

    What a manifest or a snapshot says that is altered is not known; a warning names each, and nobody's rows or parents
    are taken from it.
    """
    known = registrations(registry.ledger)
    manifests = _manifests(registry)
    read = ask_all(partial(_snapshot, registry), stored_names(registry.store, SNAPSHOTS))
    records = {name: snapshot for name, snapshot in read.items() if snapshot is not None}
    snapshots: dict[str, list[Name]] = {}
    for name in records:
        snapshots.setdefault(name.task, []).append(name)
    names = [*(manifests.keys() - known.versions.keys()), *known.versions]
    return Graph(
        homes={name.digest: name for name in names},
        versions=known.versions,
        manifests=manifests,
        snapshots=snapshots,
        records=records,
        trainings={training.prompt: training for training in known.trainings},
        shared_by={
            Name(name.task, parent): name
            for name, manifest in manifests.items()
            if is_shared(manifest)
            for parent in manifest.parents
        },
        collected=known.tombstones - manifests.keys(),
    )


def _manifests(registry: Registry) -> dict[Name, PromptManifest]:
    manifests: dict[Name, PromptManifest] = {}
    for name, manifest in read_manifests(registry.store, stored_names(registry.store, PROMPTS)).items():
        if manifest is None:
            log.warning(
                "%s/%s: altered, so nobody knows what it was made from; `ptp doctor %s`",
                registry.store.url,
                manifest_key(*name),
                name.task,
            )
        else:
            manifests[name] = manifest
    return manifests


def _snapshot(registry: Registry, name: Name) -> Snapshot | None:
    try:
        return read_snapshot(registry.store, *name)
    except (ArtifactError, NotFound) as error:
        log.warning("%s", error)
        return None
