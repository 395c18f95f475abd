"""From `TASK`, `TASK@ALIAS` or `TASK@N` to a verified artifact, from the object store alone."""

import re
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.foreign import parse_record
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_ensemble
from ptpipeline.records.base import is_name
from ptpipeline.records.versions import PRODUCTION, Pointer, VersionName
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import pointer_key, version_key

WRITTEN_AGAIN = "`ptp reconcile` writes it again"


class Resolved(NamedTuple):
    """The version that a reference means now: its number, its artifact, and an ensemble's prompts."""

    task: str
    number: int
    artifact: Artifact
    members: list[Artifact]

    @property
    def name(self) -> str:
        """`task@number`, as answers cite it."""
        return f"{self.task}@{self.number}"


def split_reference(reference: str) -> tuple[str, str]:
    """Return task and alias or number of `TASK[@ALIAS|@N]`; the alias is `production` if none is given.

    Raises NotFound if the reference has another form.
    """
    task, at, rest = reference.partition("@")
    if not is_name(task) or (at and not is_name(rest)) or (rest.isdigit() and len(rest) > 9):
        raise NotFound(
            f"{reference!r} names no prompt; expected TASK, TASK@ALIAS or TASK@NUMBER, such as "
            "movie-sentiment@production"
        )
    return task, rest or PRODUCTION


def resolve(store: ObjectStore, reference: str) -> Resolved:
    """Return the verified artifact of a reference.

    Raises NotFound if alias or version do not exist, ArtifactError if pointer or bytes are altered, or if the store
    asks for a signature that is not there.
    """
    task, name = split_reference(reference)
    number, digest = (
        _read_version(store, task, name) if re.fullmatch(r"[0-9]+", name) else _read_pointer(store, task, name)
    )
    try:
        artifact = read_artifact(store, task, digest)
    except NotFound:
        raise NotFound(
            f"{task}@{number}: its prompt {digest[:12]} is not in {store.url}: garbage collection deleted it, or it is "
            f"lost; choose another version of `ptp versions {task}`"
        ) from None
    return Resolved(task, number, artifact, read_ensemble(store, artifact))


def _read_version(store: ObjectStore, task: str, name: str) -> tuple[int, str]:
    key = version_key(task, int(name))
    try:
        body = store.read(key).body
    except NotFound:
        raise NotFound(f"{task} has no version {name} in {store.url}; `ptp versions {task}` lists them") from None
    version = parse_record(VersionName, body, f"{store.url}/{key}: not a version record", WRITTEN_AGAIN)
    if (version.task, version.number) != (task, int(name)):
        raise ArtifactError(
            f"{store.url}/{key}: records {version.task}@{version.number}; `ptp doctor` shows what was altered"
        )
    return version.number, version.digest


def _read_pointer(store: ObjectStore, task: str, alias: str) -> tuple[int, str]:
    key = pointer_key(task, alias)
    try:
        body = store.read(key).body
    except NotFound:
        raise NotFound(
            f"{task} has no {alias} version in {store.url}; train and promote one with `ptp run {task}`"
        ) from None
    promotion = parse_record(Pointer, body, f"{store.url}/{key}: not a pointer", WRITTEN_AGAIN).promotion
    if (promotion.task, promotion.alias) != (task, alias):
        raise ArtifactError(
            f"{store.url}/{key}: points for {promotion.task}@{promotion.alias}; `ptp reconcile` writes it again"
        )
    return promotion.version, promotion.digest
