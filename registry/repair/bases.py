"""Compares the base models on this machine with what binds them: a pin, the prompts in use, the archive of a package.

Nothing is fetched: a base that is not here is named, and another machine's doctor looks at it.
"""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, BaseModelError, DataError, NotFound, TaskFileError
from ptpipeline.models.base import PreparedBase, check_pin, find_folder, packed_of, prepare_folder
from ptpipeline.packages import check_kept, find_kept
from ptpipeline.progress import advance, expect, phase
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.settings import Settings
from ptpipeline.task.folder import BaseModelSource, find_base_model, sound_tasks
from ptpipeline.task.task import Task
from registry.registry import Registry
from registry.repair.difference import Difference


class Bases(NamedTuple):
    """What differs, and one sentence for each base model that could not be looked at on this machine."""

    differences: list[Difference]
    absent: list[str]


def compare_bases(registry: Registry, settings: Settings, task: str | None = None) -> Bases:
    """Read all files of the base models that task files and the versions in use name, of one task or all.

    A base that no fingerprint is pinned of is held against the prompts in use. Those are what aliases name.
    """
    uses = _find_uses(registry, task)
    for declared in _declared_tasks(settings):
        if task in (None, declared.name):
            uses.setdefault(declared.base_model, {})
    bases = Bases([], [])
    with phase("base models"), TemporaryDirectory() as scratch:
        expect(len(uses), "base models")
        notes = settings.home if settings.home.exists() else Path(scratch)  # of configurations; reading makes no home
        for name, prompts in sorted(uses.items()):
            _compare_base(bases, settings, notes, name, prompts)
            advance(1)
    return bases


def _declared_tasks(settings: Settings) -> list[Task]:
    try:
        return sound_tasks(settings.tasks)[0]
    except NotFound:  # a machine that keeps the registry needs no task files
        return []


def _find_uses(registry: Registry, task: str | None) -> dict[str, dict[str, str]]:
    """The bases of the prompts in use by name: `task@alias` -> the fingerprint that the prompt was trained for."""
    uses: dict[str, dict[str, str]] = {}
    for head in registry.ledger.heads(task):
        try:
            base = read_artifact(registry.store, head.task, head.digest).manifest.base_model
        except (ArtifactError, NotFound):  # told of the version
            continue
        uses.setdefault(base.name, {})[f"{head.task}@{head.alias}"] = base.fingerprint
    return uses


def _compare_base(bases: Bases, settings: Settings, notes: Path, name: str, prompts: dict[str, str]) -> None:
    try:
        source = find_base_model(settings.tasks, name)
    except (NotFound, TaskFileError) as error:
        bases.absent.append(f"base model {name} was not looked at: {error}")
        return
    again = "restore its files from a backup"
    packed = packed_of(source)
    kept = find_kept(packed, settings.home) if packed else None
    if packed and kept:
        try:
            check_kept(packed, kept)
        except DataError as error:
            mend = f"remove {kept.path}, and the archive if it is named: the next use fetches them again"
            bases.differences.append(_describe(name, f"what {packed.package} holds", str(error), mend))
    folder = find_folder(name, source, settings.home)
    if folder is None:
        bases.absent.append(f"base model {name} was not looked at: it is not on this machine")
        return
    if source.path is None:
        again = f"remove {folder}: the next use fetches it again"
    try:
        prepared = prepare_folder(name, folder, notes)
        check_pin(prepared, source)
    except BaseModelError as error:
        pinned = f"fingerprint {source.fingerprint[:12]}" if source.fingerprint else "a base model that can be read"
        bases.differences.append(_describe(name, pinned, str(error), again))
        return
    bases.differences.extend(_compare_prompts(prepared, source, prompts, again))


def _compare_prompts(
    prepared: PreparedBase, source: BaseModelSource, prompts: dict[str, str], again: str
) -> Iterable[Difference]:
    """Yield a difference if the base, as it is, is none for some prompts in use: readers refuse these."""
    known = {ref.fingerprint for ref in prepared.known}
    others = {name: fingerprint for name, fingerprint in sorted(prompts.items()) if fingerprint not in known}
    if others:
        name, fingerprint = next(iter(others.items()))
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        found = f"{prepared.folder} hashes to {prepared.ref.fingerprint[:12]}"
        mend = f"`ptp run {name.split('@')[0]}` trains for the base that is there"
        yield _describe(
            prepared.name,
            f"fingerprint {fingerprint[:12]}, for which {name}{more} was trained",
            found,
            mend if source.fingerprint else f"if nobody meant to change it, {again}; else {mend}",
        )


def _describe(name: str, expected: str, found: str, mend: str) -> Difference:
    return Difference(
        task="base models",
        kind="base",
        what=f"base model {name}",
        expected=expected,
        found=found,
        mend=mend,
        safe=False,
    )
