"""From `TASK`, `TASK@ALIAS` or `TASK@N` to a verified artifact, from the object store alone."""

import re
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.foreign import parse_record
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_ensemble
from ptpipeline.records.base import is_name
from ptpipeline.records.versions import PRODUCTION, Pointer, Promotion, VersionName
from ptpipeline.serving.seen import Memory, Older
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
        named = read_name(store, task, int(name))
        number, digest = named.number, named.digest
    else:
        promotion = read_promotion(store, task, name, memory)
        number, digest = promotion.version, promotion.digest
    artifact = read_prompt(store, task, digest, f"{task}@{number}")
    return Resolved(task, number, artifact, read_ensemble(store, artifact))


def read_prompt(store: ObjectStore, task: str, digest: str, name: str) -> Artifact:
    """Return the verified prompt, which messages call `name`; raises NotFound and ArtifactError as `resolve` does."""
    try:
        return read_artifact(store, task, digest)
    except NotFound:
        raise NotFound(
            f"{name}: its prompt {digest[:12]} is not in {store.url}: garbage collection deleted it, or it is "
            f"lost; choose another version of `ptp versions {task}`"
        ) from None


def read_name(store: ObjectStore, task: str, number: int) -> VersionName:
    """Return which prompt the version of that number is.

    Raises NotFound if there is none, ArtifactError if the record is altered.
    """
    key = version_key(task, number)
    try:
        body = store.read(key).body
    except NotFound:
        raise NotFound(f"{task} has no version {number} in {store.url}; `ptp versions {task}` lists them") from None
    version = parse_record(VersionName, body, f"{store.url}/{key}: not a version record", WRITTEN_AGAIN)
    if (version.task, version.number) != (task, number):
        raise ArtifactError(
            f"{store.url}/{key}: records {version.task}@{version.number}; `ptp doctor` shows what was altered"
        )
    return version


def read_promotion(store: ObjectStore, task: str, alias: str, memory: Memory | None) -> Promotion:
    """Return the promotion that the alias's pointer shows, of versions whose numbers name the same prompts.

    Raises NotFound and ArtifactError as `resolve` does.
    """
    promotion = _read_pointer(store, task, alias)
    if memory is not None and isinstance(store, SignedStore) and store.trust is not None:
        try:
            memory.check(store, promotion)
        except Older:  # or another reader saw its successor since we read it
            promotion = _read_pointer(store, task, alias)
            memory.check(store, promotion)
    _check_name(store, promotion, promotion.version, promotion.digest)
    if promotion.beside:
        _check_name(store, promotion, promotion.beside.version, promotion.beside.digest)
    return promotion


def _check_name(store: ObjectStore, promotion: Promotion, number: int, digest: str) -> None:
    """Raise ArtifactError if the number names another prompt than the pointer says."""
    try:
        named = read_name(store, promotion.task, number)
    except NotFound:  # a name can be lost, and `ptp reconcile` writes it again: the pointer says the same
        return
    if named.digest != digest:
        raise ArtifactError(
            f"{store.url}/{pointer_key(promotion.task, promotion.alias)}: calls prompt {digest[:12]} version "
            f"{number}, and {version_key(promotion.task, number)} names {named.digest[:12]}; {WRITTEN_AGAIN}"
        )


def _read_pointer(store: ObjectStore, task: str, alias: str) -> Promotion:
    key = pointer_key(task, alias)
    try:
        body = store.read(key).body
    except NotFound:
        how = (
            f"train one with `ptp run {task}` and, if its task file says `promote: manual`, approve it with "
            f"`ptp approve {task}@N`"
            if alias == PRODUCTION
            else f"`ptp promote {task}@N --alias {alias}` makes one"
        )
        raise NotFound(
            f"{task} has no {alias} version in {store.url}; {how}; `ptp versions` lists tasks, versions and aliases"
        ) from None
    promotion = parse_record(Pointer, body, f"{store.url}/{key}: not a pointer", WRITTEN_AGAIN).promotion
    if (promotion.task, promotion.alias) != (task, alias):
        raise ArtifactError(
            f"{store.url}/{key}: points for {promotion.task}@{promotion.alias}; `ptp reconcile` writes it again"
        )
    return promotion
