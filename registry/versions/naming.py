"""What names a version in the store: an object under its number, for readers that have no ledger."""

import logging

from ptpipeline.errors import ArtifactError, NotFound, Terminal
from ptpipeline.foreign import parse_record
from ptpipeline.records.versions import PromptVersion, VersionName
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import quarantined_version_key, version_key
from ptpipeline.storage.signed import is_accepted, without_checks
from registry.ledger.ledger import Ledger
from registry.registry import Registry

log = logging.getLogger(__name__)


def name_version(store: ObjectStore, version: PromptVersion) -> bool:
    """Let readers of the store alone find the version by its number; returns whether anything had to be written."""
    key = version_key(version.task, version.number)
    body = encode_name(version)
    try:
        stored = without_checks(store).read(key)  # signed or not: it is held against the ledger
    except NotFound:
        store.create(key, body)
        return True
    if stored.body == body:
        if is_accepted(store, key, body):
            return False
        store.create(key, body)  # signs it
        return True
    kept = quarantined_version_key(version.task, version.number, stored.body)
    store.create(kept, stored.body)
    log.warning(
        "%s/%s named another prompt than the ledger's %s; kept as %s and replaced",
        store.url,
        key,
        version.digest[:12],
        kept,
    )
    store.replace(key, body, stored.etag)
    return True


def encode_name(version: PromptVersion) -> bytes:
    """Return the bytes of the object that names the version."""
    name = VersionName(task=version.task, number=version.number, digest=version.digest)
    return name.model_dump_json(indent=1).encode()


def check_number(registry: Registry, task: str, digest: str) -> None:
    """Raise Terminal if the store names another prompt under the next number: a ledger that was restored from an older
    backup would give that number a second time.
    """
    number = 0
    while True:
        newest = registry.ledger.versions(task, limit=1)
        following = newest[0].number + 1 if newest else 1
        named = _named_digest(registry.store, task, following)
        if named in (None, digest) or _is_version(registry.ledger, task, digest):
            return
        if following == number:  # else another publish took the number since the ledger was read
            raise Terminal(
                f"{task}: the store names prompt {(named or '')[:12]} as version {number}, which the ledger "
                "does not know; was it restored from an older backup? "
                "`ptp doctor --rebuild-ledger` adds what it lost"
            )
        number = following


def _is_version(ledger: Ledger, task: str, digest: str) -> bool:
    try:
        return ledger.version_of(task, digest).digest == digest
    except NotFound:
        return False


def _named_digest(store: ObjectStore, task: str, number: int) -> str | None:
    """Return the digest that the store names under that number; None if it names nothing readable."""
    try:
        key = version_key(task, number)
        return parse_record(VersionName, store.read(key).body, key).digest
    except (NotFound, ArtifactError):
        return None
