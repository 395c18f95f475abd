"""One file as it lies on a disk: its path, its first bytes, its size."""

import bz2
import gzip
import hashlib
import os
import re
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ptpipeline.data import files
from ptpipeline.errors import DataError
from tests.data.tables import WANTED, load, pairs, read

ROWS = "text,label\n" + "".join(f"text {number},{'bad' if number % 2 else 'good'}\n" for number in range(40))


@pytest.mark.parametrize(
    "name",
    ["a[12].csv", "a*.csv", "a?.csv", "a::b.csv", "a#b.csv", "a%20b.csv", "~a.csv", "$HOME.csv", "a\nb.csv", "é.csv"],
)
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_a_path_is_no_pattern(tmp_path: Path, name: str, form: str) -> None:
    for near in ("a1.csv", "ab.csv", "a b.csv", "a"):
        (tmp_path / near).write_text("text,label\nwrong,bad\n")
    path = tmp_path / name
    if form == "parquet":
        pq.write_table(pa.table({"text": ["a"], "label": ["bad"]}), pa.OSFile(str(path), "wb"))
    else:
        path.write_text(
            {"csv": "text,label\na,bad\n", "tsv": "text\tlabel\na\tbad\n"}.get(form, '{"text":"a","label":"bad"}')
        )
    assert pairs(read(path, form)) == [("a", "bad")]


@pytest.mark.parametrize(
    ("encode", "kind", "fix"),
    [
        (lambda text: text.encode("utf-16"), "UTF-16", "iconv"),
        (lambda text: b"\xfe\xff" + text.encode("utf-16-be"), "UTF-16", "iconv"),
        (lambda text: text.encode("utf-16-le"), "UTF-16 without a byte order mark", "iconv"),
        (lambda text: text.encode("utf-16-be"), "UTF-16 without a byte order mark", "iconv"),
        (lambda text: text.encode("utf-32"), "UTF-32", "iconv"),
        (lambda text: text.replace("bad", "\u3042").encode("iso2022_jp"), "ISO-2022-JP", "iconv"),
        (lambda text: text.replace("bad", "\uadf8").encode("iso2022_kr"), "ISO-2022-KR", "iconv"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_another_encoding_is_told_with_a_command_that_works(
    tmp_path: Path, encode: Callable[[str], bytes], kind: str, fix: str, form: str
) -> None:
    body = ROWS if form == "csv" else '{"text": "a \u00e9", "label": "bad"}\n' * 20
    body = body.replace("\u00e9", "") if kind.startswith("ISO-2022") else body
    with pytest.raises(DataError, match=f"the file is {kind}; save it as UTF-8, for example by: {fix} ") as raised:
        load(tmp_path, encode(body), form)
    command = re.search(r"for example by: (iconv .*)$", str(raised.value))
    assert command
    done = command[1].replace("FILE", f"rows.{form}").replace("NEW", "new")
    subprocess.run(["bash", "-c", done], cwd=tmp_path, check=True)
    assert (tmp_path / "new").read_text(encoding="utf-8-sig").translate({0x3042: "bad", 0xADF8: "bad"}) == body
    assert pairs(load(tmp_path, (tmp_path / "new").read_bytes(), form))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (gzip.compress(ROWS.encode()), "the file is compressed by gzip; decompress it by: gunzip < FILE"),
        (b"\x28\xb5\x2f\xfd....", "compressed by zstd"),
        (bz2.compress(ROWS.encode()), "compressed by bzip2; decompress it by: bunzip2 < FILE > NEW"),
        (
            b"PK\x03\x04....",
            "the file is a zip archive; unpack it by: unzip FILE",
        ),
        (b"PK\x03\x04....[Content_Types].xml....xl/workbook.xml", "an Excel workbook; save the sheet as CSV UTF-8"),
        (b"PK\x03\x04....[Content_Types].xml....word/document.xml", "a document of a word processor; save it as plain"),
        (b"PK\x03\x04....Index/Document.iwa", "a workbook of Numbers; export the table as CSV"),
        (b"PK\x03\x04....mimetypeapplication/vnd.oasis.opendocument.spreadsheet", "a workbook of LibreOffice; save"),
        (b"\xd0\xcf\x11\xe0....", "an old Excel workbook"),
        (b"PAR1\x15\x04", r"a Parquet file; set data\.source\.format: parquet"),
        (b"SQLite format 3\0", "an SQLite database"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_another_kind_of_file_is_named(tmp_path: Path, body: bytes, sentence: str, form: str) -> None:
    with pytest.raises(DataError, match=sentence) as raised:
        load(tmp_path, body, form)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("body", [ROWS.encode(), bytes(range(256)), b"\x15\x04\x00PAR1"])
def test_a_parquet_file_is_told_by_its_first_bytes(tmp_path: Path, body: bytes) -> None:
    told = r"the file is no Parquet file, as its first bytes tell; if it is text, set data\.source\.format: csv, tsv or"
    with pytest.raises(DataError, match=f"not readable as parquet: {told} jsonl$"):
        load(tmp_path, body, "parquet")


@pytest.mark.parametrize("name", ["PAR1", "BZh", "%PDF", "ARROW1", "PK", "SQLite format 3", "GIF89a"])
def test_a_name_of_a_column_makes_no_other_file(tmp_path: Path, name: str) -> None:
    assert pairs(load(tmp_path, f"{name},text,label\n1,a,bad\n")) == [("a", "bad")]


def test_texts_with_a_few_nuls_are_no_utf16(tmp_path: Path) -> None:
    assert pairs(load(tmp_path, "text,label\na\0b,bad\n\0,good\n")) == [("a\0b", "bad"), ("\0", "good")]


def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with pytest.raises(DataError, match=r"not readable as csv: cannot be read \(No such file or directory\)"):
        read(path)
    path.mkdir()
    with pytest.raises(DataError, match=r"not readable as csv: cannot be read \(Is a directory\)"):
        read(path)


def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.csv"
    path.touch()
    os.truncate(path, files.MAX_BYTES + 1)  # a sparse file
    with pytest.raises(DataError, match="4294967297 bytes; a source may have at most 4294967296 bytes"):
        read(path)


def test_only_wanted_columns_are_kept(tmp_path: Path) -> None:
    table = load(tmp_path, "id,text,label\n1,a,bad\n", wanted=WANTED[:1])
    assert (table.names, list(table.columns)) == (["id", "text", "label"], ["text"])


OTHERS = [
    (b"\x04\x22\x4d\x18abc\x00", "compressed by lz4"),
    (b"7z\xbc\xaf\x27\x1c\x00\x04", "a 7z archive"),
    (b"Rar!\x1a\x07\x01\x00", "a rar archive"),
    (b"rows.csv" + bytes(249) + b"ustar\x0000" + bytes(248) + b"text,label\na,bad\n", "a tar archive"),
    (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00", "a pickle"),
    (b"\x93NUMPY\x01\x00v\x00{", "a NumPy array"),
    (b"\x89HDF\r\n\x1a\n\x00", "an HDF5 file"),
    (b"ORC\x0a\x03\x00\x00", "an ORC file"),
    (b"Obj\x01\x04\x14avro", "an Avro file"),
    (b"\xff\xff\xff\xff\x10\x00\x00\x00", "an Arrow stream"),
    (b"\x80\x03cpandas", "a pickle"),
    (b"<stata_dta><header><release>118", "a file of Stata"),
    (
        b"--\n-- PostgreSQL database dump\n--\n\nSET client_encoding = 'UTF8';\nSELECT set_config('', '', false);\n\n"
        b"CREATE TABLE public.rows (\n    text text,\n    label text\n);\nCOPY public.rows (text, label) FROM stdin;\n",
        "a dump of SQL; load it into a database",
    ),
    (
        b"-- MySQL dump 10.13\n/*!40101 SET NAMES utf8 */;\nDROP TABLE IF EXISTS `rows`;\nCREATE TABLE `rows` (\n"
        b"  `text` text\n);\nINSERT INTO `rows` VALUES ('a, b','bad'),('c','good');\n",
        "a dump of SQL; load it into a database",
    ),
    (b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\nINSERT INTO rows VALUES('a','bad');\n", "a dump of SQL"),
    (b"$FL2@(#) SPSS DATA FILE", "a file of SPSS"),
    (b"FEA1\x00\x00\x00\x00", "an Arrow file"),
    (b"{\\rtf1\\ansi text,label}", "a document of a word processor"),
    (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a pointer of Git LFS, and not the file itself; fetch it by: git lfs pull",
    ),
]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize(("body", "kind"), OTHERS)
def test_what_lies_there_instead_is_named(tmp_path: Path, body: bytes, kind: str, form: str) -> None:
    with pytest.raises(DataError, match=f"not readable as {form}: the file is {kind}"):
        load(tmp_path, body, form)


def test_an_arrow_stream_is_named_as_its_writer_writes_it(tmp_path: Path) -> None:
    rows = pa.table({"text": ["a"], "label": ["bad"]})
    with pa.OSFile(str(tmp_path / "rows"), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
        writer.write_table(rows)
    with pytest.raises(DataError, match="the file is an Arrow stream; write it as Parquet"):
        read(tmp_path / "rows", "parquet")


FRAME = pandas.DataFrame({"text": ["a \u00e9", "it's"], "label": ["007", "1"]})


def write_stream(path: Path) -> None:
    rows = pa.Table.from_pandas(FRAME)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
        writer.write_table(rows)


def write_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        FRAME.to_sql("TABLE", database, index=False)


@pytest.mark.parametrize(
    "write",
    [
        FRAME.to_feather,
        lambda path: FRAME.to_feather(path, compression="zstd"),
        write_stream,
        lambda path: FRAME.to_orc(path),
        write_sqlite,
        lambda path: FRAME.to_stata(path, write_index=False, version=118),
        lambda path: FRAME.to_stata(path, write_index=False, version=114),
        lambda path: polars.from_pandas(FRAME).write_avro(path),
    ],
)
def test_another_table_is_told_with_a_command_that_writes_it(tmp_path: Path, write: Callable[[Path], object]) -> None:
    write(tmp_path / "rows")
    with pytest.raises(DataError, match=r"; write (it|a table) as Parquet by: ") as raised:
        read(tmp_path / "rows")
    command = re.search(r"by: (python -c .* NEW\.parquet)", str(raised.value))
    assert command is not None
    done = command[1].replace("python", sys.executable, 1).replace("FILE", "rows").replace("TABLE", "[TABLE]")
    subprocess.run(["bash", "-c", done], cwd=tmp_path, check=True)
    assert pairs(read(tmp_path / "NEW.parquet", "parquet")) == list(FRAME.itertuples(index=False, name=None))


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_a_file_that_is_no_text_is_told_as_such(tmp_path: Path, form: str) -> None:
    with pytest.raises(
        DataError, match="the file is no text; if it is compressed, decompress it, else save the rows as"
    ):
        load(tmp_path, bytes(range(8)) * 40 + bytes(99), form)


@pytest.mark.parametrize("pack", [zlib.compress, lambda body: b"\x89PNG\r\n\x1a\n" + zlib.compress(body), bytes])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_what_is_packed_or_drawn_is_no_text(tmp_path: Path, pack: Callable[[bytes], bytes], form: str) -> None:
    """It has few bytes of NUL, and by chance a line end, a quote or a bracket."""
    body = pack(bytes(range(256)) * 20 if pack is bytes else hashlib.shake_256().digest(2000))
    with pytest.raises(
        DataError, match="the file is no text; if it is compressed, decompress it, else save the rows as"
    ):
        load(tmp_path, body, form)


@pytest.mark.parametrize("encoding", ["utf-8", "shift_jis", "cp1252"])
def test_texts_with_control_characters_are_texts(tmp_path: Path, encoding: str) -> None:
    """UTF-8 may hold all of them; what people type in other encodings holds a few."""
    controls = "".join(map(chr, range(1, 9))) if encoding == "utf-8" else "\x01\x02\x03"
    letter = "\u65e5" if encoding == "shift_jis" else "\u00e9"
    table = load(tmp_path, f"text,label\na{controls}{letter * 2000},bad\n".encode(encoding))
    assert [label for _, label in pairs(table)] == ["bad"]


@pytest.mark.parametrize("program", ["gzip", "xz", "bzip2", "zstd", "lz4"])
def test_a_compressed_file_is_told_with_a_command_that_works_whatever_its_name(tmp_path: Path, program: str) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    subprocess.run(f"{program} < rows.csv > packed", shell=True, cwd=tmp_path, check=True)
    with pytest.raises(DataError, match="; decompress it by: ") as raised:
        read(tmp_path / "packed")
    command = str(raised.value).partition("decompress it by: ")[2].replace("FILE", "packed")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "NEW").read_text() == ROWS


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_told_with_a_command_that_unpacks_it(tmp_path: Path, kind: str, form: str) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "packed", "w") as archive:
            archive.write(tmp_path / "rows.csv", "rows.csv")
    else:
        with tarfile.open(tmp_path / "packed", "w") as archive:
            archive.add(tmp_path / "rows.csv", "rows.csv")
    (tmp_path / "rows.csv").unlink()
    with pytest.raises(DataError, match=f"the file is a {kind} archive; unpack it by: ") as raised:
        read(tmp_path / "packed", form)
    command = str(raised.value).partition("unpack it by: ")[2].replace("FILE", "packed")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert len(pairs(read(tmp_path / "rows.csv"))) == 40


PACKED = pa.BufferOutputStream()
pq.write_table(pa.table({"text": ["a"], "label": ["bad"]}), PACKED)


@pytest.mark.parametrize(
    ("body", "form", "right"),
    [
        (b"text,label\na,bad\n", "jsonl", "csv"),
        (b"text,label\na,bad\n", "parquet", "csv"),
        (b"text\tlabel\na\tbad\n", "parquet", "tsv"),
        (b'{"text": "a", "label": "bad"}\n', "parquet", "jsonl"),
        (b'{"text": "a", "label": "bad"}\n', "csv", "jsonl"),
        (PACKED.getvalue().to_pybytes(), "csv", "parquet"),
        (PACKED.getvalue().to_pybytes(), "jsonl", "parquet"),
    ],
)
def test_what_a_message_says_of_the_format_reads_the_file(tmp_path: Path, body: bytes, form: str, right: str) -> None:
    with pytest.raises(DataError, match=r"set data\.source\.format: ") as raised:
        load(tmp_path, body, form)
    assert right in str(raised.value).partition("data.source.format: ")[2]
    assert pairs(load(tmp_path, body, right)) == [("a", "bad")]
