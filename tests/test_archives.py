"""Archives that were made to harm: each is refused in a sentence, before it costs time, memory or disk."""

import gzip
import io
import lzma
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pytest

from ptpipeline import archives
from ptpipeline.archives import (
    FREE,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_PIECE,
    NoMember,
    _Allowance,
    _check_count,
    _Pieces,
    read_member,
    unfold,
)
from ptpipeline.errors import DataError

GIB = 2**30
# What an own process reports: the sentence, seconds and bytes of memory that reading took, and bytes that were taken.
READ = """
import re, sys, time
from pathlib import Path
from ptpipeline.archives import read_member
from ptpipeline.errors import PtpError
taken, start = 0, time.process_time()
def take(block):
    global taken
    taken += len(block)
try:
    read_member(Path(sys.argv[1]), sys.argv[2], take)
    said = "success"
except PtpError as error:
    said = f"{type(error).__name__} {error}"
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # of this process alone
print(time.process_time() - start, peak, taken, said)
"""


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return path


def zeros(count: int) -> bytes:
    """That many zeros as one deflate stream without header, which is a thousandth as long."""
    packer = zlib.compressobj(9, wbits=-15)
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * (count // 2**20) + packer.flush()


def directory(name: bytes, packed: int, size: int, entries: int = 1) -> bytes:
    """The central directory of a zip that lists the entry at its start so many times, and the zip's end."""
    entry = (
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, packed, size, len(name), 0, 0, 0, 0, 0, 0) + name
    )
    count, body = min(entries, 65535), entry * entries
    local = 30 + len(name) + packed
    return body + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(body), local, 0)


def one_entry(name: bytes, packed: bytes, size: int, entries: int = 1) -> bytes:
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(packed), size, len(name), 0)
    return local + name + packed + directory(name, len(packed), size, entries)


def wheel_of_a_gibibyte(folder: Path) -> tuple[Path, str]:
    path = folder / "bomb.whl"
    path.write_bytes(one_entry(b"a", zeros(GIB), GIB))
    return path, "a"


def wheel_that_lies_about_its_size(folder: Path) -> tuple[Path, str]:
    path = folder / "bomb.whl"
    path.write_bytes(one_entry(b"a", zeros(GIB), 10))
    return path, "a"


def zip_of_a_million_entries(folder: Path) -> tuple[Path, str]:
    path = folder / "many.zip"
    path.write_bytes(one_entry(b"a", zeros(0), 0, entries=1_000_000))
    return path, "b"


def zip_of_many_short_entries(folder: Path) -> tuple[Path, str]:
    path = folder / "many.zip"
    path.write_bytes(one_entry(b"a", zeros(0), 0, entries=170_000))
    return path, "b"


def nested_bomb(folder: Path) -> tuple[Path, str]:
    inner = one_entry(b"a", zeros(GIB), GIB)
    return zipped(folder / "outer.zip", {"inner.zip": inner}), "inner.zip!/a"


def deep_nest(folder: Path) -> tuple[Path, str]:
    body = b"text"
    for _ in range(9):
        body = zipped(folder / "layer.zip", {"inner.zip": body}).read_bytes()
    (folder / "deep.zip").write_bytes(body)
    return folder / "deep.zip", "!/".join(["inner.zip"] * 9)


def tar_of_zeros(folder: Path) -> tuple[Path, str]:
    info = tarfile.TarInfo("a")
    info.size = GIB
    path = folder / "bomb.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf()) + gzip.compress(bytes(2**20)) * 1024)
    return path, "a"


def tar_of_many_entries(folder: Path) -> tuple[Path, str]:
    path = folder / "many.tar.gz"
    path.write_bytes(gzip.compress(tarfile.TarInfo("a").tobuf() * 1000) * 120)
    return path, "b"


def tar_with_a_huge_size(folder: Path) -> tuple[Path, str]:
    info = tarfile.TarInfo("a")
    info.size = 2**60
    (folder / "huge.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    return folder / "huge.tar", "a"


def tar_with_a_huge_header(folder: Path) -> tuple[Path, str]:
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.XHDTYPE, 2**40
    (folder / "header.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    return folder / "header.tar", "a"


def tar_with_a_huge_sparse_file(folder: Path) -> tuple[Path, str]:
    info = tarfile.TarInfo("a")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"\x80" + (2**40).to_bytes(11, "big")  # its size with the gaps
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    (folder / "sparse.tar").write_bytes(bytes(block) + bytes(1024))
    return folder / "sparse.tar", "a"


def xz_that_needs_four_gibibytes(folder: Path) -> tuple[Path, str]:
    body = bytearray(lzma.compress(bytes(10240), lzma.FORMAT_XZ))
    length = (body[12] + 1) * 4  # of the block's header, whose third last field is the size of the dictionary
    body[16] = 40
    body[12 + length - 4 : 12 + length] = struct.pack("<L", zlib.crc32(body[12 : 12 + length - 4]))
    (folder / "memory.tar.xz").write_bytes(body)
    return folder / "memory.tar.xz", "a"


def zip_by_an_unusual_method(folder: Path) -> tuple[Path, str]:
    return zipped(folder / "method.zip", {"a": b"text"}, zipfile.ZIP_LZMA), "a"


def encrypted_zip(folder: Path) -> tuple[Path, str]:
    body = bytearray(zipped(folder / "secret.zip", {"a": b"text"}).read_bytes())
    body[6] |= 1
    body[body.index(b"PK\1\2") + 8] |= 1
    (folder / "secret.zip").write_bytes(body)
    return folder / "secret.zip", "a"


HARMFUL = [
    wheel_of_a_gibibyte,
    wheel_that_lies_about_its_size,
    zip_of_a_million_entries,
    zip_of_many_short_entries,
    nested_bomb,
    deep_nest,
    tar_of_zeros,
    tar_of_many_entries,
    tar_with_a_huge_size,
    tar_with_a_huge_header,
    tar_with_a_huge_sparse_file,
    xz_that_needs_four_gibibytes,
    zip_by_an_unusual_method,
    encrypted_zip,
]


@pytest.mark.parametrize("make", HARMFUL)
def test_a_harmful_archive_costs_little(make: Callable[[Path], tuple[Path, str]], tmp_path: Path) -> None:
    path, member = make(tmp_path)
    command = [sys.executable, "-c", READ, str(path), member]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    seconds, memory, taken, said = done.stdout.split(" ", 3)
    assert said.startswith(("DataError", "NoMember")), said
    assert float(seconds) < 2
    assert int(memory) < 256 * 2**20
    assert int(taken) <= 128 * 2**20


def test_an_xz_stream_that_asks_for_too_much_memory_is_refused_before_a_file_is_looked_for(tmp_path: Path) -> None:
    path, member = xz_that_needs_four_gibibytes(tmp_path)
    with pytest.raises(DataError, match="the archive is damaged"):
        read(path, member)


def test_as_many_files_as_large_packages_have_are_read(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "large.zip", {f"folder/{number}.csv": b"" for number in range(MAX_ENTRIES // 2)} | {"a": b"text"}
    )
    assert read(path, "a") == b"text"


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
def test_every_kind_of_tar_is_read(mode: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, body in (("a", b"text" * 100_000), ("b", b"other")):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    assert read(tmp_path / "x.tar", "a") == b"text" * 100_000
    assert read(zipped(tmp_path / "x.zip", {"in/x.tar": buffer.getvalue()}), "in/x.tar!/b") == b"other"


def test_every_prefix_of_an_archive_is_refused(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "x.zip", {"a": b"text" * 50}).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "part.zip").write_bytes(whole[:length])
        with pytest.raises((DataError, NoMember)):
            read(tmp_path / "part.zip", "a")


@pytest.mark.parametrize(("layers", "opened"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
def test_as_many_archives_within_each_other_as_are_allowed_are_opened(
    tmp_path: Path, layers: int, opened: bool
) -> None:
    body, path = b"text", tmp_path / "outer.zip"
    for _ in range(layers):
        body = zipped(path, {"inner.zip": body}).read_bytes()
    with nullcontext() if opened else pytest.raises(DataError, match=f"at most {MAX_DEPTH} are opened"):
        assert read(path, "!/".join(["inner.zip"] * layers)) == b"text"


def test_as_many_bytes_as_are_allowed_may_be_unpacked_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "a.zip").touch()
    allowance = _Allowance(tmp_path / "a.zip")
    allowance.spend(FREE - 1)
    allowance.spend(1)
    with pytest.raises(DataError, match=f"unpacks to more than {FREE} bytes"):
        allowance.check(1)


def test_no_ratio_lets_an_archive_unpack_to_more_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_UNPACKED", FREE + 1)
    with (tmp_path / "a.zip").open("wb") as file:
        file.truncate(FREE)
    assert _Allowance(tmp_path / "a.zip").most == FREE + 1


def test_as_many_files_as_are_allowed_may_be_listed_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "a.zip").touch()
    allowance = _Allowance(tmp_path / "a.zip")
    _check_count(MAX_ENTRIES, allowance)
    with pytest.raises(DataError, match=f"lists more than {MAX_ENTRIES} files"):
        _check_count(MAX_ENTRIES + 1, allowance)


def test_no_piece_that_is_longer_than_allowed_is_read_at_once() -> None:
    pieces = _Pieces(io.BytesIO(bytes(MAX_PIECE + 1)), "a.zip")
    assert len(pieces.read(MAX_PIECE)) == MAX_PIECE
    with pytest.raises(DataError, match=rf"a\.zip: has an index or a header of {MAX_PIECE + 1} bytes"):
        pieces.read(MAX_PIECE + 1)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_member_that_states_too_large_a_size_is_refused_before_a_byte_of_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(archives, "FREE", 4 * 2**20)
    body, path, taken = bytes(5 * 2**19), tmp_path / f"x.{kind}", list[bytes]()
    if kind == "zip":
        zipped(path, {"a": body + body})
    else:  # the tar alone fits, and what is in it does not fit beside it
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo("a")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    with pytest.raises(DataError, match="unpacks to more than 4194304 bytes"):
        read_member(path, "a", taken.append)
    assert taken == []


def test_a_name_that_stands_for_two_files_names_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", b"one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a", b"other")
    with pytest.raises(NoMember):
        read(tmp_path / "x.zip", "a")


def test_a_file_with_gaps_is_no_member(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "sparse.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(NoMember):
        read(tmp_path / "sparse.tar", "a")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_tar_whose_compression_is_cut_off_behind_the_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, f"w:{kind}") as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("a"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="the archive is damaged"):
        read(path, "a")


def read(path: Path, member: str) -> bytes:
    blocks: list[bytes] = []
    read_member(path, member, blocks.append)
    return b"".join(blocks)


# ---------------------------------------------------------------- one compressed file


def unfolded(path: Path, folder: Path) -> bytes:
    with unfold(path, "rows.csv", folder / "home") as plain:
        return plain.read_bytes()


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_several_parts_behind_each_other_are_one_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows.csv"
    with pa.CompressedOutputStream(str(path), kind) as file:
        file.write(b"a,b\n")
    path.write_bytes(2 * path.read_bytes())
    assert unfolded(path, tmp_path) == b"a,b\na,b\n"
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_file_that_unfolds_into_too_much_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows.csv"
    with pa.CompressedOutputStream(str(path), kind) as file:
        for _ in range(80):
            file.write(bytes(2**20))
    with pytest.raises(DataError, match=r"rows\.csv: unpacks to more than 67108864 bytes, which is no honest archive"):
        unfolded(path, tmp_path)
    assert list((tmp_path / "home").iterdir()) == []


def test_a_frame_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    """The header of a Zstandard frame asks for a window of 2 GiB."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x01\x00\x00" * 3)
    with pytest.raises(DataError, match="the compressed file is damaged"):
        unfolded(path, tmp_path)


def test_a_plain_file_is_given_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for body in (b"", b"(", b"a,b\n"):
        path.write_bytes(body)
        with unfold(path, "rows.csv", tmp_path / "home") as plain:
            assert plain == path


def test_a_file_that_needs_a_dictionary_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv.zst").write_bytes(b"\x28\xb5\x2f\xfd\x23\x01\x02\x03\x04" + bytes(20))
    told = "rows.csv: is compressed by zstd with a dictionary; decompress it by: zstd -d -D DICTIONARY < FILE > NEW"
    with pytest.raises(DataError, match=told), unfold(tmp_path / "rows.csv.zst", "rows.csv", tmp_path):
        pass
