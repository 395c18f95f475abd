"""Objects whose keys name their content: plots, records beside a prompt, pages, dossiers and quarantined copies.

What lies at such a key either is what the key says or was altered; then it is never shown, and whoever writes the right
bytes again keeps a copy of the altered ones.
"""

import logging

from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.addresses import is_content_of
from ptpipeline.storage.keys import quarantine_key
from ptpipeline.storage.signed import without_checks

log = logging.getLogger(__name__)


def read_content(store: ObjectStore, key: str) -> bytes:
    """Return the object; raises NotFound, or ArtifactError if it is not the content that its key names."""
    body = store.read(key).body
    if not is_content_of(key, body):
        raise ArtifactError(f"{store.url}/{key}: {len(body)} bytes are not the content that the key names; altered")
    return body


def is_sound(store: ObjectStore, key: str) -> bool:
    """Return whether the object is there and is the content that its key names."""
    try:
        read_content(store, key)
    except (ArtifactError, NotFound):
        return False
    return True


def write_content(store: ObjectStore, key: str, body: bytes) -> None:
    """Store the content at the key that names it; altered bytes that lie there are kept elsewhere and replaced."""
    try:
        store.create(key, body)
    except PreconditionFailed:
        stored = without_checks(store).read(key)
        keep(store, key, stored.body)
        store.replace(key, body, stored.etag)


def keep(store: ObjectStore, key: str, body: bytes) -> str:
    """Keep a copy, in quarantine, of the altered bytes that lie at a key and are about to go; return its key."""
    kept = quarantine_key(key, body)
    store.create(kept, body)
    log.warning("%s/%s is kept as %s and replaced", store.url, key, kept)
    return kept


def set_aside(store: ObjectStore, key: str) -> str:
    """Move an altered object to quarantine; return what was done, as a sentence."""
    try:
        kept = keep(store, key, without_checks(store).read(key).body)
    except NotFound:
        return f"{key} is gone"
    store.delete(key)
    return f"{key} was altered: kept as {kept}"
