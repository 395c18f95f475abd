"""Compares the ledger with pointers, MLflow aliases, MLflow versions and stored bytes; changes nothing."""

import re
from collections.abc import Iterator
from contextlib import suppress

from pydantic import ValidationError

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.prompts.artifact import read_artifact, read_members
from ptpipeline.records import DIGEST_PATTERN, Promotion, Record, VersionName, version_key
from registry.reconcile import pointer_in
from registry.registry import Registry


class Difference(Record):
    """One disagreement with the ledger, and the command that mends it."""

    task: str
    what: str
    expected: str
    found: str
    mend: str


def examine(registry: Registry, task: str | None = None) -> list[Difference]:
    """Every difference between the ledger and what follows it, of one task or all; empty where all agrees.

    Raises ServiceUnavailable where the ledger, the store or MLflow does not answer.
    """
    names = [task] if task else sorted({*registry.ledger.tasks(), *(intent.task for intent in registry.ledger.intents()), *_stored_tasks(registry)})
    found: list[Difference] = []
    for name in names:
        heads = {head.alias: head for head in registry.ledger.heads(name)}
        found += [*_bytes(registry, name), *_names(registry, name), *_pointers(registry, name, heads), *_orphans(registry, name)]
        if registry.mlflow:
            digests = registry.mlflow.digests(name)
            found += [*_models(registry, name, digests), *_aliases(registry.mlflow.aliases(name), digests, name, heads)]
    return found


def _stored_tasks(registry: Registry) -> set[str]:
    return {key.split("/")[1] for key in registry.store.keys("prompts")}


def _bytes(registry: Registry, task: str) -> Iterator[Difference]:
    for version in registry.ledger.versions(task, limit=None):
        try:
            read_members(registry.store, read_artifact(registry.store, task, version.digest))
        except (ArtifactError, NotFound) as error:
            yield Difference(
                task=task, what=f"bytes of version {version.number}", expected=f"digest {version.digest[:12]}", found=str(error), mend=f"restore them from a backup, or {_again(task)}"
            )


def _names(registry: Registry, task: str) -> Iterator[Difference]:
    for version in registry.ledger.versions(task, limit=None):
        try:
            named = VersionName.model_validate_json(registry.store.read(version_key(task, version.number)).body).digest
        except (NotFound, ValidationError):
            named = "nothing"
        if named != version.digest:
            yield Difference(task=task, what=f"number {version.number} in the store", expected=f"digest {version.digest[:12]}", found=named[:12], mend="ptp reconcile")


def _pointers(registry: Registry, task: str, heads: dict[str, Promotion]) -> Iterator[Difference]:
    folder = f"prompts/{task}/aliases"
    stored = {key.rsplit("/", 1)[-1].removesuffix(".json"): key for key in registry.store.keys(folder)}
    for alias in sorted({*heads, *stored}):
        head = heads.get(alias)
        pointer = pointer_in(registry.store.read(stored[alias]).body) if alias in stored else None
        if head is None or pointer != head:
            found = "no object" if alias not in stored else "no readable pointer" if pointer is None else f"version {pointer.version} (seq {pointer.seq})"
            mend = "ptp reconcile" if head else f"ptp promote {task}@N --alias {alias} --reason ..."
            yield Difference(task=task, what=f"pointer {alias}", expected=_named(head), found=found, mend=mend)


def _orphans(registry: Registry, task: str) -> Iterator[Difference]:
    """Stored prompts that are no version, and publishes that did not end."""
    registered = {version.digest for version in registry.ledger.versions(task, limit=None)}
    intended = {intent.digest for intent in registry.ledger.intents(task)}
    stored = {part for key in registry.store.keys(f"prompts/{task}") if re.fullmatch(DIGEST_PATTERN, part := key.split("/")[2])}
    for digest in sorted(intended):
        yield Difference(task=task, what=f"publish of {digest[:12]}", expected="finished", found="interrupted", mend=_again(task))
    for digest in sorted(stored - registered - intended - _parts(registry, task, registered)):
        yield Difference(task=task, what=f"stored prompt {digest[:12]}", expected="a registered version", found="no row in the ledger", mend=_again(task))


def _again(task: str) -> str:
    """How what was interrupted is finished: by the verb that began it."""
    return f"`ptp run {task}`; of a shared prompt `ptp run` a task that starts from it, of an import `ptp import` again"


def _parts(registry: Registry, task: str, registered: set[str]) -> set[str]:
    """Prompts that versions consist of or were taught by: members of ensembles, teachers of shared prompts."""
    parts: set[str] = set()
    for digest in registered:
        with suppress(ArtifactError, NotFound):  # reported with its bytes
            manifest = read_artifact(registry.store, task, digest).manifest
            parts.update(manifest.parents, manifest.members.digests if manifest.members else ())
    return parts


def _models(registry: Registry, task: str, shown: dict[str, str]) -> Iterator[Difference]:
    for version in registry.ledger.versions(task, limit=None):
        if version.digest not in shown.values():
            yield Difference(task=task, what=f"MLflow version of version {version.number}", expected=f"tag ptp.digest {version.digest[:12]}", found="none", mend="ptp reconcile")


def _aliases(shown: dict[str, str], digests: dict[str, str], task: str, heads: dict[str, Promotion]) -> Iterator[Difference]:
    for alias in sorted({*heads, *shown}):
        head = heads.get(alias)
        digest = digests.get(shown.get(alias, ""), "")
        if head is None or digest != head.digest:
            found = f"MLflow version {shown[alias]} ({digest[:12] or 'no ptp.digest'})" if alias in shown else "no alias"
            mend = "ptp reconcile" if head else f"ptp promote {task}@N --alias {alias} --reason ..."
            yield Difference(task=task, what=f"MLflow alias {alias}", expected=_named(head), found=found, mend=mend)


def _named(head: Promotion | None) -> str:
    return f"version {head.version} (seq {head.seq})" if head else "no such alias in the ledger"
