"""ObjectStore: S3 (boto3) and a local folder behind one protocol, with conditional puts.

Immutable content goes in with `create` (If-None-Match: *), pointers move with `replace` (If-Match). A put that lost
raises PreconditionFailed; `ptpipeline.storage.conditional` checks that a store does so.
"""

from pathlib import Path
from urllib.parse import urlparse

from ptpipeline.errors import SettingsError
from ptpipeline.storage.folder import FolderStore
from ptpipeline.storage.objects import Listed, ObjectStore, Stored, check_key, without_login
from ptpipeline.storage.s3 import RequestLimits, S3Store

__all__ = ["FolderStore", "Listed", "ObjectStore", "RequestLimits", "S3Store", "Stored", "check_key", "open_store"]


def open_store(url: str, s3_endpoint: str | None = None) -> ObjectStore:
    """Return the store that `PTP_STORE` names: `file:///folder` or `s3://bucket[/prefix]`.

    Raises SettingsError if the address is neither.
    """
    if url.startswith("file:///"):
        # not parsed as a URL: a folder's name may contain `#`, `?` and `%`
        return FolderStore(Path(url.removeprefix("file://")))
    parsed = urlparse(without_login("PTP_STORE", url))
    if parsed.scheme == "s3" and parsed.netloc:
        return S3Store(parsed.netloc, parsed.path.strip("/"), s3_endpoint)
    raise SettingsError(f"PTP_STORE: {url!r} is not a store; expected file:///absolute/folder or s3://bucket[/prefix]")
