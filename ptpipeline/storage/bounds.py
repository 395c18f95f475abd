"""The most bytes that each kind of object may have. A store asks for the size first, and reads no larger object."""

from ptpipeline.errors import ArtifactError
from ptpipeline.storage.addresses import PromptObject, Results, SnapshotObject, StoredCheckpoint, parse

MIB, GIB = 2**20, 2**30


def max_bytes(key: str) -> int:
    """Return the most bytes that the object at the key may have."""
    address = parse(key)
    if isinstance(address, StoredCheckpoint | Results):
        return 4 * GIB
    if isinstance(address, SnapshotObject):
        return 4 * GIB if key.endswith(".parquet") else MIB
    if isinstance(address, PromptObject) and not address.is_manifest:
        return 64 * MIB  # tensors, plots, pages, dossiers
    return MIB


def check_bytes(url: str, key: str, count: int) -> None:
    """Raise ArtifactError if that kind of object may not have so many bytes."""
    most = max_bytes(key)
    if count > most:
        raise ArtifactError(f"{url}/{key}: {count} bytes, at most {most} allowed; the object is not what its key says")
