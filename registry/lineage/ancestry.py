"""The rules of descent: what a prompt consists of or descends from, and which snapshots its existence needs."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal

from ptpipeline.errors import ArtifactError
from ptpipeline.foreign import parse_record
from ptpipeline.records.base import digest_of
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.addresses import PromptObject, SnapshotObject, parse
from ptpipeline.storage.keys import manifest_key
from registry.ledger.usage import Name, SnapshotLink, Training
from registry.listing import read_all

Relation = Literal["start", "shared prompt", "teacher", "member", "source"]

MAX_COMBINATIONS = 100_000  # of the sources' snapshots, tried for the one that a shared prompt was trained on


# ---------------------------------------------------------------- prompts


def parts_of(manifest: PromptManifest) -> list[str]:
    """Return the digests of the prompts that it consists of or descends from."""
    return [*manifest.parents, *(manifest.members.digests if manifest.members else ())]


def relation_of(manifest: PromptManifest) -> Relation:
    """Return what the prompt's parents are to it."""
    if manifest.method != "multitask":
        return "start"
    return "teacher" if is_shared(manifest) else "shared prompt"


def is_shared(manifest: PromptManifest) -> bool:
    """Return whether the prompt was trained for several tasks, to start their prompts from: it answers for none."""
    return manifest.method == "multitask" and not manifest.labels and not manifest.generate


def with_parts(prompts: set[Name], manifests: Mapping[Name, PromptManifest]) -> set[Name]:
    """Return the prompts and all that they consist of or descend from.

    A digest names one prompt, whichever task it lies in: parents may be versions of other tasks.
    """
    homes: dict[str, list[Name]] = {}
    for name in manifests:
        homes.setdefault(name.digest, []).append(name)
    whole, todo = set(prompts), list(prompts)
    while todo:
        manifest = manifests.get(todo.pop())
        parts = [name for digest in (parts_of(manifest) if manifest else ()) for name in homes.get(digest, ())]
        todo += [name for name in parts if name not in whole]
        whole.update(parts)
    return whole


def read_manifests(store: ObjectStore, names: Iterable[Name]) -> dict[Name, PromptManifest | None]:
    """Return the manifests of those prompts as they are stored, signed or not: None if one was altered.

    Those that are not stored are left out.
    """
    keys = {manifest_key(*name): name for name in names}
    return {keys[key]: _manifest(keys[key], body) for key, body in read_all(store, keys).items()}


def _manifest(name: Name, body: bytes) -> PromptManifest | None:
    try:
        manifest = parse_record(PromptManifest, body, "manifest")
    except ArtifactError:
        return None
    return manifest if (manifest.task, manifest.digest()) == name else None


def stored_names(store: ObjectStore, folder: str) -> list[Name]:
    """Return the prompts or snapshots below `folder` that have their manifest; other objects are passed over."""
    return [
        Name(address.task, address.digest)
        for address in map(parse, store.keys(folder))
        if isinstance(address, PromptObject | SnapshotObject) and address.is_manifest
    ]


# ---------------------------------------------------------------- snapshots


def snapshots_of(
    prompts: AbstractSet[Name], manifests: Mapping[Name, PromptManifest], links: Iterable[SnapshotLink]
) -> set[Name]:
    """Return what the prompts were trained and measured on: by their manifests and, if bytes are missing, by the
    ledger's `links`.
    """
    stated = {Name(name.task, manifests[name].snapshot) for name in prompts if name in manifests}
    return stated | {Name(link.prompt.task, link.snapshot) for link in links if link.prompt in prompts}


def source_snapshots_of(prompts: AbstractSet[Name], trainings: Iterable[Training], stored: Iterable[Name]) -> set[Name]:
    """Return the snapshots of other tasks that the shared prompts among `prompts` were trained on.

    If too many combinations of the `stored` snapshots would have to be tried, all snapshots of those tasks.
    """
    by_task: dict[str, list[Name]] = {}
    for name in stored:
        by_task.setdefault(name.task, []).append(name)
    needed: set[Name] = set()
    for training in trainings:
        task, snapshot = training.prompt.task, training.snapshot
        sources = [by_task.get(source, []) for source in sources_in(task, training.trials)]
        if training.prompt in prompts and sources and Name(task, snapshot) not in by_task.get(task, []):
            too_many = math.prod(map(len, sources)) > MAX_COMBINATIONS
            needed.update(itertools.chain(*sources) if too_many else combination(snapshot, sources) or ())
    return needed


def combination(digest: str, sources: Sequence[Sequence[Name]]) -> list[Name] | None:
    """Return one snapshot of each source whose digests together have that digest, which a shared prompt states as
    its own.

    None if there is none, or if more than MAX_COMBINATIONS would have to be tried.
    """
    if math.prod(map(len, sources)) > MAX_COMBINATIONS:
        return None
    for chosen in itertools.product(*sources):
        if digest_of([name.digest for name in chosen]) == digest:
            return list(chosen)
    return None


def sources_in(task: str, trials: Iterable[str]) -> list[str]:
    """Return the tasks that a shared prompt, or a teacher of one, was trained for, in their order.

    The trials of such a training are named after these tasks.
    """
    return [trial.split("/", 1)[1].removeprefix("teacher of ") for trial in trials if trial.startswith(f"{task}/")]
