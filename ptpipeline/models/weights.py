"""The tensors in safetensors files: every header is checked against its file before a tensor is hashed.

Format: 8 bytes with the header's length (little-endian), the header in JSON, then the tensors' bytes without a gap.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from ptpipeline.errors import BaseModelError
from ptpipeline.foreign import parse_json, parsing

MAX_HEADER = 100_000_000  # bytes, the bound of the safetensors library
FETCH_AGAIN = "fetch the model again"
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}
_BLOCK = 1 << 22

# Device, inode, bytes, and times of change of content and of entry. The last one cannot be set back without the clock.
FileState = tuple[int, int, int, int, int]


class Stored(NamedTuple):
    """Type, as safetensors calls it, and shape of a tensor."""

    dtype: str
    shape: list[int]


class _Tensor(NamedTuple):
    """Where one tensor lies: its file, and the first byte behind its header; `begin` and `end` count from there."""

    file: IO[bytes]
    path: Path
    dtype: str
    shape: list[int]
    begin: int
    end: int


def state_of(path: Path) -> FileState:
    """Return what changes if anybody writes to the file or puts another one in its place."""
    return _state(path.stat())


def _state(stat: os.stat_result) -> FileState:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def digest_weights(paths: Sequence[Path]) -> tuple[str, list[FileState]]:
    """Return the sha256 over name, type, shape and bytes of every tensor, sorted by name across the files, and the
    state of each file while it was read.

    Raises BaseModelError for a file that is no safetensors file, a tensor that is stated twice, and a file that changes
    meanwhile.
    """
    files: list[IO[bytes]] = []
    try:
        for path in paths:
            files.append(path.open("rb"))
        states = [_state(os.fstat(file.fileno())) for file in files]
        digest = _digest_tensors(_find_tensors(files, paths))
        if [_state(os.fstat(file.fileno())) for file in files] != states:
            raise BaseModelError(f"{paths[0].parent}: its weights change while they are read; wait for who writes them")
        return digest, states
    except OSError as error:
        raise BaseModelError(f"{error.filename or paths[0].parent}: cannot be read ({error.strerror})") from None
    finally:
        for file in files:
            file.close()


def read_headers(paths: Sequence[Path]) -> dict[str, Stored]:
    """Return type and shape of every tensor in these files by name; raises what `digest_weights` raises of headers."""
    files: list[IO[bytes]] = []
    try:
        for path in paths:
            files.append(path.open("rb"))
        return {name: Stored(tensor.dtype, tensor.shape) for name, tensor in _find_tensors(files, paths).items()}
    except OSError as error:
        raise BaseModelError(f"{error.filename or paths[0].parent}: cannot be read ({error.strerror})") from None
    finally:
        for file in files:
            file.close()


def _find_tensors(files: Sequence[IO[bytes]], paths: Sequence[Path]) -> dict[str, _Tensor]:
    tensors: dict[str, _Tensor] = {}
    for file, path in zip(files, paths, strict=True):
        for name, tensor in _read_header(file, path).items():
            if name in tensors:
                raise BaseModelError(
                    f"{path}: tensor {name!r} is also in {tensors[name].path.name}, and loaders take either; "
                    f"{FETCH_AGAIN}"
                )
            tensors[name] = tensor
    return tensors


def _read_header(file: IO[bytes], path: Path) -> dict[str, _Tensor]:
    """Return the tensors of one file. Raises BaseModelError unless they fill it without gap, overlap or rest."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > size - 8 or length > MAX_HEADER:
        raise BaseModelError(f"{path}: not a safetensors file (perhaps a git-lfs pointer); {FETCH_AGAIN}")
    header = parse_json(file.read(length), f"{path}: its header", FETCH_AGAIN, BaseModelError)
    with parsing(f"{path}: its header", FETCH_AGAIN, BaseModelError):
        header.pop("__metadata__", None)
        tensors = {str(name): _place(file, path, 8 + length, info) for name, info in header.items()}
        _check_places(path, tensors, 8 + length, size)
    return tensors


def _place(file: IO[bytes], path: Path, start: int, info: dict[str, Any]) -> _Tensor:
    """Return where one tensor lies; whatever is wrong with what the header states is raised as it comes."""
    dtype, shape, (begin, end) = str(info["dtype"]), info["shape"], info["data_offsets"]
    if not isinstance(shape, list) or any(type(number) is not int or number < 0 for number in [*shape, begin, end]):
        raise BaseModelError(f"{path}: its header states a shape or place that is no natural number; {FETCH_AGAIN}")
    if dtype not in _BITS:
        raise BaseModelError(f"{path}: tensors of type {dtype[:20]!r} are not known; save the model in float types")
    return _Tensor(file, path, dtype, shape, start + begin, start + end)


def _check_places(path: Path, tensors: dict[str, _Tensor], start: int, size: int) -> None:
    """A byte that no tensor or two tensors hold would be a byte that is hashed otherwise than it is loaded."""
    at = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != at or tensor.end - at != math.prod(tensor.shape) * _BITS[tensor.dtype] // 8:
            raise BaseModelError(
                f"{path}: tensor {name[:80]!r} lies elsewhere than type, shape and the tensors before it say; "
                f"{FETCH_AGAIN}"
            )
        at = tensor.end
    if at != size:
        raise BaseModelError(f"{path}: its header accounts for {at} of {size} bytes; {FETCH_AGAIN}")


def _digest_tensors(tensors: dict[str, _Tensor]) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        tensor.file.seek(tensor.begin)
        remaining = tensor.end - tensor.begin
        while remaining:
            count = tensor.file.readinto(block[: min(remaining, _BLOCK)])  # type: ignore[attr-defined]
            if not count:
                raise BaseModelError(f"{tensor.path}: ends inside tensor {name[:80]!r}; {FETCH_AGAIN}")
            digest.update(block[:count])
            remaining -= count
    return digest.hexdigest()
