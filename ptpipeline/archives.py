"""Files inside archives, and compressed files, that somebody else made: found and read as a stream, within bounds.

A small archive may unpack to any size, list millions of entries, or nest. One allowance covers all that is unpacked on
the way to a member, of every layer; entries are counted, and no single piece of an index may be large.
"""

import bz2
import difflib
import gzip
import lzma
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ptpipeline.errors import DataError, NotFound
from ptpipeline.foreign import parsing

NESTED = "!/"
MAX_RATIO = 100  # unpacked bytes per packed one: tables reach 20, weights 2; a bomb has 1,000 and more
FREE = 64 * 2**20  # bytes that may be unpacked whatever the ratio
MAX_UNPACKED = 16 * 2**30  # bytes
MAX_ENTRIES = 50_000
MAX_PIECE = 8 * 2**20  # bytes of a zip's directory, or of one header of a tar
MAX_DEPTH = 3  # archives within each other
_MEMORY = 64 * 2**20  # bytes that a decompressor may hold
_BLOCK = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


class NoMember(NotFound):
    """The archive has no file of that name; `similar` are names that resemble it."""

    def __init__(self, similar: list[str]) -> None:
        super().__init__(f"no such file in the archive; similar names: {', '.join(similar) or 'none'}")
        self.similar = similar


def read_member(archive: Path, member: str, take: Callable[[bytes], Any]) -> None:
    """Call `take` with the blocks of one file of an archive, in order; `outer.zip!/inner.txt` reaches into another.

    What was taken before an error is not whole. Raises NoMember if there is no such file, DataError if the archive is
    damaged or exceeds a bound.
    """
    steps = member.split(NESTED)
    if len(steps) > MAX_DEPTH:
        raise DataError(f"{archive}: {member}: {len(steps)} archives within each other, at most {MAX_DEPTH} are opened")
    allowance = _Allowance(archive)
    blocks = _blocks(archive, steps, allowance)
    try:
        while block := _next(archive, member, blocks):
            take(block)
    finally:
        with parsing(str(archive), "it is damaged", DataError):
            blocks.close()


def _next(archive: Path, member: str, blocks: Generator[bytes, None, None]) -> bytes:
    with parsing(f"{archive}: {member}", "the archive is damaged; delete it to fetch it again", DataError):
        return next(blocks, b"")


@contextmanager
def unfold(file: Path, name: str, folder: Path) -> Iterator[Path]:
    """Give the plain file that a gzip or Zstandard file holds, in `folder` until the block ends; any other file itself.

    The first bytes decide, not the name: no UTF-8 begins like these. Raises DataError, which names the file `name`, if
    it is damaged, or unfolds into more than its size allows.
    """
    with file.open("rb") as packed:
        begin = packed.read(5)
        opener = _COMPRESSED.get(begin[:2])
        if opener is None:
            yield file
            return
        if begin.startswith(b"\x28\xb5\x2f\xfd") and begin[4] & 3:  # a dictionary's number follows
            raise DataError(
                f"{name}: is compressed by zstd with a dictionary; decompress it by: zstd -d -D DICTIONARY < FILE > NEW"
            )
        packed.seek(0)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".unfold-", dir=folder) as plain:
            allowance = _Allowance(file, name)
            with parsing(name, "the compressed file is damaged or cut off", DataError), opener(packed) as stream:
                while block := stream.read(_BLOCK):
                    allowance.spend(len(block))
                    plain.write(block)
            plain.flush()
            yield Path(plain.name)


def _open_gzip(file: IO[bytes]) -> IO[bytes]:
    return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]


def _open_zstd(file: IO[bytes]) -> IO[bytes]:
    """Zstandard itself refuses a frame that would take more than 128 MiB of memory."""
    import pyarrow as pa

    stream: IO[bytes] = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return stream


_COMPRESSED = {b"\x1f\x8b": _open_gzip, b"\x28\xb5": _open_zstd}


class _Allowance:
    """How many bytes may still be unpacked from one archive, which messages call `name`."""

    def __init__(self, archive: Path, name: str | None = None) -> None:
        self.archive, self.packed = name or str(archive), archive.stat().st_size
        self.left = self.most = min(MAX_UNPACKED, max(FREE, MAX_RATIO * self.packed))

    def check(self, count: int) -> None:
        """Raise DataError if so many more bytes would be too many."""
        if count > self.left:
            raise DataError(
                f"{self.archive}: unpacks to more than {self.most} bytes, which is no honest archive of "
                f"{self.packed}; unpack it by hand if you trust it, and name the file by `path`"
            )

    def spend(self, count: int) -> None:
        """Count bytes that were unpacked."""
        self.check(count)
        self.left -= count


class _Pieces:
    """A file of which no large piece is read at once: archives state how long the pieces of their index are."""

    def __init__(self, file: IO[bytes], archive: str) -> None:
        self.file, self.archive = file, archive
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, count: int = -1) -> bytes:
        if count > MAX_PIECE:
            raise DataError(f"{self.archive}: has an index or a header of {count} bytes, at most {MAX_PIECE} are read")
        return self.file.read(min(count, MAX_PIECE) if count >= 0 else MAX_PIECE)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _blocks(archive: Path, steps: list[str], allowance: _Allowance) -> Generator[bytes, None, None]:
    with archive.open("rb") as file, _open_steps(file, archive.name, steps, allowance) as member:
        while block := member.read(_BLOCK):
            allowance.spend(len(block))
            yield block


@contextmanager
def _open_steps(file: IO[bytes], name: str, steps: list[str], allowance: _Allowance) -> Iterator[IO[bytes]]:
    """Open the file that `steps` lead to, through one archive per step; archives in between lie in nameless files."""
    opener = _open_zip if name.endswith((".zip", ".whl")) else _open_tar
    with opener(file, steps[0], allowance) as member:
        if len(steps) == 1:
            yield member
        else:
            with _spool(member.read, allowance) as inner, _open_steps(inner, steps[0], steps[1:], allowance) as found:
                yield found


@contextmanager
def _spool(read: Callable[[int], bytes], allowance: _Allowance) -> Iterator[IO[bytes]]:
    """Give what can be read as a file that can be searched; it has no name and ends with the process."""
    with tempfile.TemporaryFile() as file:
        while block := read(_BLOCK):
            allowance.spend(len(block))
            file.write(block)
        file.seek(0)
        yield file


@contextmanager
def _open_zip(file: IO[bytes], member: str, allowance: _Allowance) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(_Pieces(file, allowance.archive)) as archive:
        names = archive.namelist()
        _check_count(len(names), allowance)
        if names.count(member) != 1:
            raise NoMember(_similar(member, names))
        info = archive.getinfo(member)
        if info.compress_type not in _METHODS:
            raise DataError(f"{allowance.archive}: {member}: is packed by a method that is not read; repack it")
        allowance.check(info.file_size)
        with archive.open(info) as stream:
            yield stream


@contextmanager
def _open_tar(file: IO[bytes], member: str, allowance: _Allowance) -> Iterator[IO[bytes]]:
    with (
        _decompress(file, allowance) as plain,
        tarfile.open(fileobj=_Pieces(plain, allowance.archive), mode="r:") as archive,  # type: ignore[call-overload]
    ):
        names: list[str] = []
        found = None
        while (info := archive.next()) is not None:
            archive.members.clear()  # tarfile keeps them all
            names.append(info.name)
            _check_count(len(names), allowance)
            if info.name == member and info.isreg() and not info.issparse():  # links could lead out of the archive
                found = info
        if found is None:
            raise NoMember(_similar(member, names))
        allowance.check(found.size)
        stream = archive.extractfile(found)
        if stream is None:
            raise NoMember([])
        with stream:
            yield stream


@contextmanager
def _decompress(file: IO[bytes], allowance: _Allowance) -> Iterator[IO[bytes]]:
    """Give the plain tar in `file`, whole, so that going back in it unpacks nothing twice."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=file) as stream, _spool(stream.read, allowance) as plain:
            yield plain
    elif start.startswith(b"BZh"):
        with bz2.BZ2File(file) as packed, _spool(packed.read, allowance) as plain:
            yield plain
    elif start == b"\xfd7zXZ\0":
        with _spool(_read_xz(file), allowance) as plain:
            yield plain
    else:
        yield file


def _read_xz(file: IO[bytes]) -> Callable[[int], bytes]:
    """Return a function that reads on in an xz stream, which states itself how much memory it needs."""
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)

    def read(count: int) -> bytes:
        while not unpacker.eof:
            packed = file.read(_BLOCK) if unpacker.needs_input else b""
            if unpacker.needs_input and not packed:
                raise EOFError
            if block := unpacker.decompress(packed, count):
                return block
        return b""

    return read


def _check_count(count: int, allowance: _Allowance) -> None:
    if count > MAX_ENTRIES:
        raise DataError(
            f"{allowance.archive}: lists more than {MAX_ENTRIES} files; unpack it by hand, and name the file by `path`"
        )


def _similar(member: str, names: list[str]) -> list[str]:
    same_name = [name for name in names if PurePosixPath(name).name == PurePosixPath(member).name != member]
    return same_name[:3] or difflib.get_close_matches(member, names[:2000], n=3, cutoff=0.4)
