"""From `TASK`, `TASK@ALIAS` or `TASK@N` to a verified artifact, from the object store alone."""

import re
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.foreign import parse_record
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_ensemble
from ptpipeline.records.base import is_name
from ptpipeline.records.versions import PRODUCTION, Pointer, Promotion, VersionName
from ptpipeline.serving.memory import Memory, Older
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import pointer_key, version_key
from ptpipeline.storage.signed import SignedStore

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


def resolve(store: ObjectStore, reference: str, memory: Memory | None = None) -> Resolved:
    """Return the verified artifact of a reference.

    memory: what this reader has seen; used if the store asks for signatures, because anybody may write the others.
    Raises NotFound if alias or version do not exist, ArtifactError if pointer or bytes are altered, if the store asks
    for a signature that is not there, or if the pointer is older than the one that the reader has seen.
    """
    task, name = split_reference(reference)
    if re.fullmatch(r"[0-9]+", name):
        number, digest = _read_version(store, task, name)
    else:
        number, digest = _read_alias(store, task, name, memory)
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


def _read_alias(store: ObjectStore, task: str, alias: str, memory: Memory | None) -> tuple[int, str]:
    promotion = _read_pointer(store, task, alias)
    if memory is not None and isinstance(store, SignedStore) and store.trust is not None:
        try:
            memory.check(store, promotion)
        except Older:  # or another reader saw its successor since we read it
            promotion = _read_pointer(store, task, alias)
            memory.check(store, promotion)
    try:
        named = _read_version(store, task, str(promotion.version))
    except NotFound:  # a name can be lost, and `ptp reconcile` writes it again: the pointer says the same
        return promotion.version, promotion.digest
    if named != (promotion.version, promotion.digest):
        raise ArtifactError(
            f"{store.url}/{pointer_key(task, alias)}: calls prompt {promotion.digest[:12]} version "
            f"{promotion.version}, and {version_key(task, promotion.version)} names {named[1][:12]}; {WRITTEN_AGAIN}"
        )
    return named


def _read_pointer(store: ObjectStore, task: str, alias: str) -> Promotion:
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
    return promotion
