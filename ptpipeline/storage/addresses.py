"""What lies at a key of the object store: keys parsed into records, by the forms that `keys` builds."""

import hashlib
import re
from typing import NamedTuple

from ptpipeline.records.base import DIGEST_PATTERN, is_name
from ptpipeline.storage import keys
from ptpipeline.storage.objects import is_key

# Keys name the whole sha256 of their content; earlier ones named its first 12 digits, those of dossiers 16.
_CONTENT = re.compile(
    r"(plots/[^/]+-(?=[^.]+\.png)|report-(?=[^.]+\.html)|[^/]+-(?=[^.]+\.json))"
    r"(?P<digits>[0-9a-f]{64}|[0-9a-f]{12})\.[a-z]+"
)
_DOSSIER = re.compile(rf"{keys.DOSSIERS}/(?P<digits>[0-9a-f]{{64}}|[0-9a-f]{{16}})\.json")
_COPY = re.compile(r".+-(?P<digits>[0-9a-f]{16})(\.json)?")


class PromptObject(NamedTuple):
    """An object of a prompt; `path` is what follows the prompt's folder."""

    task: str
    digest: str
    path: str

    @property
    def is_manifest(self) -> bool:
        """Whether it says that the prompt is complete."""
        return self.path == keys.MANIFEST_FILE

    @property
    def is_dossier(self) -> bool:
        """Whether it says how the prompt was made, measured and judged."""
        return _DOSSIER.fullmatch(self.path) is not None


class AliasPointer(NamedTuple):
    """The pointer of an alias."""

    task: str
    alias: str


class PointersMoved(NamedTuple):
    """What changes after each change of a pointer."""


class HistoryRow(NamedTuple):
    """A promotion of an alias."""

    task: str
    alias: str
    seq: int


class NumberedVersion(NamedTuple):
    """The name of a version."""

    task: str
    number: int


class Quarantined(NamedTuple):
    """A copy of an object that was altered or lay at the wrong key; `name` is its file, `root` where the object was."""

    task: str
    name: str
    root: str = keys.PROMPTS


class SnapshotObject(NamedTuple):
    """An object of a snapshot; `path` is what follows the snapshot's folder."""

    task: str
    digest: str
    path: str

    @property
    def is_manifest(self) -> bool:
        """Whether it says that the snapshot is complete."""
        return self.path == keys.MANIFEST_FILE


class Results(NamedTuple):
    """The results of an evaluation, row by row."""

    task: str
    evaluation_key: str


class StoredRelease(NamedTuple):
    """A release."""

    name: str


class StoredCheckpoint(NamedTuple):
    """A checkpoint of a training in progress."""

    digest: str


class ServerHoldings(NamedTuple):
    """What a server holds."""

    server: str


class ObjectSignature(NamedTuple):
    """A signature of the bytes with that sha256 at the key `signed`."""

    signed: str
    digest: str
    signer: str


class ProbeObject(NamedTuple):
    """What the test of conditional puts writes."""

    nonce: str
    name: str


Address = (
    PromptObject
    | AliasPointer
    | PointersMoved
    | HistoryRow
    | NumberedVersion
    | Quarantined
    | SnapshotObject
    | Results
    | StoredRelease
    | StoredCheckpoint
    | ServerHoldings
    | ObjectSignature
    | ProbeObject
)


class ClaimedPrompt(NamedTuple):
    """The prompt whose manifest a key claims to be; neither its task nor its digest was checked."""

    task: str
    digest: str


def parse(key: str) -> Address | None:
    """Return what lies at the key; None for a key of a form that `keys` does not build, or that no store takes."""
    if not is_key(key):
        return None
    if key == keys.MOVED_KEY:
        return PointersMoved()
    match key.split("/"):
        case [keys.PROMPTS, task, digest, *names] if names and is_name(task) and _is_digest(digest):
            return PromptObject(task, digest, "/".join(names))
        case [keys.SNAPSHOTS, task, digest, *names] if names and is_name(task) and _is_digest(digest):
            return SnapshotObject(task, digest, "/".join(names))
        case [keys.PROMPTS, task, *rest] if is_name(task):
            return _parse_ledger_object(task, rest)
        case [keys.SNAPSHOTS | keys.REPORTS as root, task, keys.QUARANTINE, name] if name and is_name(task):
            return Quarantined(task, name, root)
        case [keys.REPORTS, task, evaluation_key, keys.ROWS_FILE] if is_name(task):
            return Results(task, evaluation_key)
        case [keys.RELEASES, file] if is_name(name := _stem(file)):
            return StoredRelease(name)
        case [keys.CHECKPOINTS, file] if _is_digest(digest := _stem(file, ".safetensors")):
            return StoredCheckpoint(digest)
        case [keys.SERVERS, file] if keys.is_server_name(server := _stem(file)):
            return ServerHoldings(server)
        case [keys.SIGNATURES, *signed, digest, file] if signed and _is_digest(digest) and _stem(file):
            return ObjectSignature("/".join(signed), digest, _stem(file))
        case [keys.PROBES, nonce, name]:
            return ProbeObject(nonce, name)
    return None


def parse_task(key: str, folder: str = keys.PROMPTS) -> str | None:
    """Return the task in whose folder of prompts the key lies, whatever the object is; None if it lies in none.

    folder: another folder with one for each task, such as that of the snapshots.
    """
    parts = key.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == folder and is_name(parts[1]) else None


def is_believed(key: str) -> bool:
    """Return whether what lies at the key is believed for a signature of its own.

    A key of no known form counts too, so that a new kind of object is signed unless it is named here. Otherwise bound
    are tensors and splits, by their manifests; results and checkpoints are sealed; nobody believes the rest.
    """
    match parse(key):
        case PromptObject(_, _, path):
            return path != keys.TENSOR_FILE and re.fullmatch(keys.signature_file("[^/]*"), path) is None
        case SnapshotObject(_, _, path):
            return re.fullmatch(r"[a-z]+\.parquet", path) is None
        case Results() | StoredCheckpoint() | ServerHoldings() | Quarantined() | ObjectSignature() | ProbeObject():
            return False
        case PointersMoved():  # a pointer is believed for its own signature, whatever made a server look at it
            return False
    return True


def is_manifest(key: str) -> bool:
    """Whether the key is the manifest of a prompt or of a snapshot."""
    address = parse(key)
    return isinstance(address, PromptObject | SnapshotObject) and address.is_manifest


def is_dossier(key: str) -> bool:
    """Whether the key is a dossier of a prompt."""
    address = parse(key)
    return isinstance(address, PromptObject) and address.is_dossier


def is_page(key: str) -> bool:
    """Whether the key is the page of a version, of now or of before."""
    address = parse(key)
    return isinstance(address, PromptObject) and address.path.endswith(".html") and names_content(key)


def names_content(key: str) -> bool:
    """Whether the key names the content of its object."""
    return _content_digits(key) is not None


def is_content_of(key: str, body: bytes) -> bool:
    """Whether the key names the content of its object, and `body` is that content."""
    digits = _content_digits(key)
    return digits is not None and hashlib.sha256(body).hexdigest().startswith(digits)


def claimed_prompt(key: str) -> ClaimedPrompt | None:
    """Return the prompt whose manifest the key claims to be.

    Whatever looks like a manifest counts, so that none gets past the check of signatures: `parse` is stricter.
    """
    if not (key.startswith(f"{keys.PROMPTS}/") and key.endswith(f"/{keys.MANIFEST_FILE}")):
        return None
    task, _, digest = key.removeprefix(f"{keys.PROMPTS}/").removesuffix(f"/{keys.MANIFEST_FILE}").rpartition("/")
    return ClaimedPrompt(task, digest)


def signer_id(key: str) -> str | None:
    """Return the id of the key that made the signature at `key`; None if no signature lies there."""
    address = parse(key)
    if isinstance(address, ObjectSignature):
        return address.signer
    matched = re.fullmatch(rf".*/{keys.signature_file('(.*)')}", key)
    return matched[1] if matched else None


def _content_digits(key: str) -> str | None:
    """Return the digits of the content's hash that the key ends with; None if it names no content."""
    address = parse(key)
    if isinstance(address, PromptObject):
        matched = _DOSSIER.fullmatch(address.path) or _CONTENT.fullmatch(address.path)
    else:
        matched = _COPY.fullmatch(address.name) if isinstance(address, Quarantined) else None
    return matched["digits"] if matched else None


def _parse_ledger_object(task: str, rest: list[str]) -> Address | None:
    """Parse what the ledger is rebuilt from and what was set aside, below the task's folder."""
    match rest:
        case [keys.ALIASES, file] if is_name(alias := _stem(file)):
            return AliasPointer(task, alias)
        case [keys.HISTORY, alias, file] if is_name(alias) and _is_seq(seq := _stem(file)):
            return HistoryRow(task, alias, int(seq))
        case [keys.VERSIONS, file] if re.fullmatch(r"[1-9][0-9]{0,8}", number := _stem(file)):
            return NumberedVersion(task, int(number))
        case [keys.QUARANTINE, name]:
            return Quarantined(task, name)
    return None


def _stem(file: str, suffix: str = ".json") -> str:
    """Return the file's name without the suffix; empty if it ends otherwise."""
    return file.removesuffix(suffix) if file.endswith(suffix) else ""


def _is_digest(text: str) -> bool:
    return re.fullmatch(DIGEST_PATTERN, text) is not None


def _is_seq(text: str) -> bool:
    """Whether the number is written as `history_key` writes it."""
    return re.fullmatch(r"[0-9]{6,9}", text) is not None and f"{int(text):06d}" == text
