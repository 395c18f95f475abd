"""The most bytes that each kind of object may have, and the least that have to come in a time.

A store asks for the size first, and reads no larger object.
"""

import time
from collections.abc import Callable

from ptpipeline.errors import ArtifactError
from ptpipeline.storage.addresses import (
    PromptObject,
    Quarantined,
    Results,
    ServerHoldings,
    SnapshotObject,
    StoredCheckpoint,
    parse,
)

MIB, GIB = 2**20, 2**30
PIECE = 8 * MIB
SLOWEST = 10_000  # bytes per second that an object has to come with, behind the time that any answer has


def max_bytes(key: str) -> int:
    """Return the most bytes that the object at the key may have."""
    address = parse(key)
    if isinstance(address, StoredCheckpoint | Results):
        return 4 * GIB
    if isinstance(address, SnapshotObject):
        return 4 * GIB if key.endswith(".parquet") else MIB
    if isinstance(address, ServerHoldings):
        return 16 * MIB  # some hundred bytes for each of its tasks
    if isinstance(address, Quarantined):
        return 64 * MIB  # whatever lay at the key of a prompt
    if isinstance(address, PromptObject) and not address.is_manifest:
        return 16 * MIB if key.endswith(".json") else 64 * MIB  # records; tensors, plots, pages
    return MIB


def check_bytes(url: str, key: str, count: int) -> None:
    """Raise ArtifactError if that kind of object may not have so many bytes."""
    most = max_bytes(key)
    if count > most:
        raise ArtifactError(f"{url}/{key}: {count} bytes, at most {most} allowed; the object is not what its key says")


def read_bounded(url: str, key: str, read: Callable[[int], bytes]) -> bytes:
    """Return all that `read(count)` gives until it gives nothing, whatever size was said before.

    Raises ArtifactError as soon as it is more than that kind of object may have.
    """
    body, most = bytearray(), max_bytes(key)
    while piece := read(min(PIECE, most + 1 - len(body))):
        body += piece
        check_bytes(url, key, len(body))
    return bytes(body)


def is_late(began: float, seconds: float, count: int) -> bool:
    """Return whether bytes trickle in: since `began`, by the monotonic clock, `count` came, which takes `seconds` and
    what SLOWEST gives them. The limits of HTTP libraries are for each read.
    """
    return time.monotonic() > began + seconds + count / SLOWEST
