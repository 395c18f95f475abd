"""Reads the rows that a prompt learnt from: its own training rows, and those of what it descends from or consists of,
in any task.
"""

from collections.abc import Iterator

from ptpipeline.data.rows import Row
from ptpipeline.data.snapshot import load_split, read_snapshot
from ptpipeline.errors import NotFound
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.storage.keys import snapshots_prefix
from registry.ledger.usage import Name, tasks_with
from registry.lineage.ancestry import combination, is_shared, parts_of, sources_in, stored_names
from registry.registry import Registry


def training_rows(registry: Registry, task: str, digest: str) -> list[Row]:
    """Return the rows that the prompt itself was trained on: those of all sources if it is a shared prompt, none if it
    was imported, since they are not known.

    Raises NotFound if prompt or rows are not stored any more, ArtifactError if they were altered.
    """
    manifest = read_artifact(registry.store, task, digest).manifest
    tuned = registry.ledger.tuned(task, manifest.training_key)
    if tuned is not None and tuned.steps == 0:
        return []
    return [
        row
        for name in _snapshots(registry, task, manifest)
        for row in load_split(registry.store, read_snapshot(registry.store, *name), "train")
    ]


def inherited_rows(registry: Registry, task: str, digest: str) -> Iterator[Row]:
    """Yield the training rows of what the prompt descends from or consists of, as far as they are still known."""
    waiting, done = [Name(task, digest)], {Name(task, digest)}
    while waiting:
        name = waiting.pop()
        try:
            manifest = read_artifact(registry.store, *name).manifest
        except NotFound:  # collected since
            continue
        parents = {_home(registry, name.task, part) for part in parts_of(manifest)} - done
        for parent in parents:
            try:
                yield from training_rows(registry, *parent)
            except NotFound:  # collected since, or the teacher of a shared prompt, whose rows are among that one's
                continue
        waiting += parents
        done |= parents


def _snapshots(registry: Registry, task: str, manifest: PromptManifest) -> list[Name]:
    """Its snapshot, or if it is a shared prompt those of its sources, whose digests together make the one it states."""
    if not is_shared(manifest):
        return [Name(task, manifest.snapshot)]
    publication = registry.ledger.publication(task, manifest.digest())
    sources = sources_in(task, [trial.name for trial in publication.tuned.trials]) if publication else []
    stored = [stored_names(registry.store, snapshots_prefix(source)) for source in sources]
    snapshots = combination(manifest.snapshot, stored)
    if snapshots is None:
        raise NotFound(
            f"{task}: the snapshots that shared prompt {manifest.digest()[:12]} was trained on are not stored any more"
        )
    return snapshots


def _home(registry: Registry, task: str, digest: str) -> Name:
    """The prompt of that digest: the task's own if it registered one, else that of the task that did."""
    tasks = tasks_with(registry.ledger, digest)
    return Name(task if task in tasks or not tasks else tasks[0], digest)
