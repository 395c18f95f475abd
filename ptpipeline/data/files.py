"""Reads one local file of rows: csv, tsv, JSON Lines or Parquet. A path is a path and never a pattern.

Only the columns that the task names are kept, and only they decide whether the file can be read. Text files are UTF-8;
a byte that is not becomes half of a surrogate pair (PEP 383), which no UTF-8 can hold, so that `is_readable` tells.
"""

import codecs
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ptpipeline.data.delimited import list_header, read_delimited
from ptpipeline.data.json_lines import list_keys, read_json_lines
from ptpipeline.data.markup import Kind, find_markup
from ptpipeline.data.table import Listed, NoRows, Table, Wanted
from ptpipeline.errors import DataError
from ptpipeline.foreign import parsing
from ptpipeline.task.data import Source

MAX_BYTES = 4 * 2**30  # of a source file; the wanted columns are kept in memory

_ARROW = (
    "write it as Parquet by: python -c 'import sys; from pyarrow import feather, parquet; "
    "parquet.write_table(feather.read_table(sys.argv[1]), sys.argv[2])' FILE NEW.parquet"
)
_STREAM = (
    "write it as Parquet by: python -c 'import sys; from pyarrow import ipc, parquet; "
    'parquet.write_table(ipc.open_stream(open(sys.argv[1], "rb")).read_all(), sys.argv[2])\' FILE NEW.parquet'
)
_ORC = (
    "write it as Parquet by: python -c 'import sys; from pyarrow import orc, parquet; "
    "parquet.write_table(orc.read_table(sys.argv[1]), sys.argv[2])' FILE NEW.parquet"
)
_SQLITE = (
    "write a table as Parquet by: python -c 'import pandas, sqlite3, sys; "
    'pandas.read_sql(sys.argv[2], sqlite3.connect(sys.argv[1])).to_parquet(sys.argv[3])\' FILE "SELECT * FROM TABLE" '
    "NEW.parquet; a task file names the database itself, as `source: {sql: {url_env: VARIABLE, query: SELECT}}`"
)
_AVRO = (
    "write it as Parquet by: python -c 'import polars, sys; polars.read_avro(sys.argv[1]).write_parquet(sys.argv[2])' "
    "FILE NEW.parquet, which needs polars (pip install polars)"
)
_STATA = (
    "write it as Parquet by: python -c 'import pandas, sys; "
    "pandas.read_stata(sys.argv[1]).to_parquet(sys.argv[2])' FILE NEW.parquet"
)
_UNPACK = (
    "decompress it by: {} < FILE > NEW"  # whatever the file's name: the programs refuse endings that they do not know
)
_PARQUET = "if it is text, set data.source.format: csv, tsv or jsonl"

# How files begin that are none of text: their name and what to do.
_BEGINNINGS = {
    b"\x1f\x8b": ("compressed by gzip", _UNPACK.format("gunzip")),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", _UNPACK.format("unzstd")),
    **dict.fromkeys(
        (bytes((kind, 0x2A, 0x4D, 0x18)) for kind in range(0x50, 0x60)),
        ("compressed by zstd, behind a frame to be skipped", _UNPACK.format("unzstd")),
    ),
    b"\xfd7zXZ\x00": ("compressed by xz", _UNPACK.format("unxz")),
    b"PK\x03\x04": ("a zip archive", "unpack it by: unzip FILE"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV UTF-8"),
    b"PAR1\x15": ("a Parquet file", "set data.source.format: parquet"),
    b"PARE": ("an encrypted Parquet file", "write it without encryption"),
    b"ARROW1\0\0": ("an Arrow file", _ARROW),
    b"SQLite format 3\0": ("an SQLite database", _SQLITE),
    b"\xff\xff\xff\xff": ("an Arrow stream", _STREAM),
    b"FEA1": ("an Arrow file", _ARROW),
    b"ORC\x0a": ("an ORC file", _ORC),
    b"Obj\x01": ("an Avro file", _AVRO),
    b"%PDF-": ("a PDF file", "give a table"),
    b"{\\rtf": ("a document of a word processor", "save it as plain text in UTF-8"),
    b"\x04\x22\x4d\x18": ("compressed by lz4", _UNPACK.format("unlz4")),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
    b"Rar!\x1a\x07": ("a rar archive", "unpack it"),
    b"\x93NUMPY": ("a NumPy array", "save the rows as csv or Parquet"),
    b"\x89HDF": ("an HDF5 file", "save the rows as csv or Parquet"),
    **dict.fromkeys(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04\x95", b"\x80\x05\x95"), ("a pickle", "save the rows as csv or Parquet")
    ),
    **dict.fromkeys(
        (b"<stata_dta>", *(bytes((version, order, 1, 0)) for version in (113, 114, 115) for order in (1, 2))),
        ("a file of Stata", _STATA),
    ),
    **dict.fromkeys((b"$FL2", b"$FL3"), ("a file of SPSS", "save the rows as CSV in UTF-8")),
    b"version https://git-lfs.github.com/spec/": (
        "a pointer of Git LFS, and not the file itself",
        "fetch it by: git lfs pull",
    ),
}
READ = ("compressed by gzip", "compressed by zstd")  # kinds that are read in every format of text
# What the names of a zip archive's first members tell of it.
_ZIPPED = {
    b"xl/": ("an Excel workbook", "save the sheet as CSV UTF-8"),
    b"opendocument.spreadsheet": ("a workbook of LibreOffice", "save the sheet as CSV in UTF-8"),
    b".iwa": ("a workbook of Numbers", "export the table as CSV"),
    b"word/": ("a document of a word processor", "save it as plain text in UTF-8"),
    b"[Content_Types].xml": ("an Excel workbook", "save the sheet as CSV UTF-8"),
}
_MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
# What encodings in bytes that are UTF-8 too write before letters that are not Latin.
_ESCAPES = {
    b"\x1b$B": "ISO-2022-JP",
    b"\x1b$@": "ISO-2022-JP",
    b"\x1b$)C": "ISO-2022-KR",
    b"\x1b$)A": "ISO-2022-CN",
}
_TAR_AT = 257  # bytes before the name of a tar's format
SAMPLE = 4096  # bytes that tell UTF-16 without a mark: a third of them are NUL
# Of these a text has hardly any; programs have nearly all of them, as have pictures and what is compressed.
_CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1a\x1b")
_FEW = 6  # different ones, in a file that is no UTF-8


def load_file(name: str, path: Path, source: Source, wanted: Sequence[Wanted]) -> Table:
    """Return the wanted columns of the file as text, and the place of each row; messages call it `name`.

    Raises NoRows if the file is empty or has no rows, DataError if it is too large, malformed or lacks a wanted column.
    """
    with parsing(f"{name}: not readable as {source.format}", _give(source.format), DataError):
        size = path.stat().st_size
        if size == 0:
            raise NoRows(f"{name}: the file is empty; expected rows in {source.format}")
        if size > MAX_BYTES:
            raise DataError(f"{name}: {size} bytes; a source may have at most {MAX_BYTES} bytes: give a part of it")
        _check_beginning(name, path, source.format or "")
        table = _read(name, path, source, wanted)
        if not all(column.cells for column in table.columns.values()):
            raise NoRows(f"{name}: there are no rows")
        return table


def _read(name: str, path: Path, source: Source, wanted: Sequence[Wanted]) -> Table:
    if source.format == "jsonl":
        return read_json_lines(name, path, wanted)
    if source.format == "parquet":
        from ptpipeline.data.arrow import read_parquet  # pyarrow is slow to load, and the key of a source needs none

        return read_parquet(name, path, wanted)
    return read_delimited(name, path, source, wanted)


def list_columns(name: str, path: Path, source: Source) -> Listed:
    """Return the columns of a file; `load_file` can be asked for those whose cells are plain values.

    Raises what `load_file` raises for a file that it cannot read.
    """
    with parsing(f"{name}: not readable as {source.format}", _give(source.format), DataError):
        if path.stat().st_size == 0:
            raise NoRows(f"{name}: the file is empty; expected rows in {source.format}")
        _check_beginning(name, path, source.format or "")
        if source.format == "jsonl":
            return list_keys(name, path)
        if source.format == "parquet":
            from ptpipeline.data.arrow import list_fields

            return list_fields(path)
        return Listed(list_header(name, path, source), [])


def _give(form: str | None) -> str:
    return "give a file in parquet that pyarrow reads" if form == "parquet" else f"give a file in {form}"


def _check_beginning(name: str, path: Path, form: str) -> None:
    """Raise DataError if the first bytes are those of another kind of file."""
    if (kind := find_kind(path, form)) is not None:
        raise DataError(f"{name}: not readable as {form}: the file is {kind.name}; {kind.fix}")


def find_kind(path: Path, form: str) -> Kind | None:
    """Return the kind of file that begins so, if it is not of the given format; None if it may be."""
    with path.open("rb") as file:
        sample = file.read(SAMPLE)
        file.seek(max(0, path.stat().st_size - SAMPLE))
        end = file.read(SAMPLE)
    kind = find_binary(sample, form)
    if kind is None:
        kind = find_markup(*(part.decode("utf-8-sig", errors="replace") for part in (sample, end)))
    if form != "parquet":
        return kind
    if not sample.startswith(b"PAR1"):
        return kind or Kind("no Parquet file, as its first bytes tell", _PARQUET)
    whole = end.endswith(b"PAR1") and len(sample) > len(b"PAR1")
    return None if whole else Kind("a Parquet file that was cut off", "fetch or write it again")


def find_binary(sample: bytes, form: str) -> Kind | None:
    """Return the kind of file that begins so, if it is no text in UTF-8 and not of the given format; else None."""
    kind = next((Kind(*told) for begin, told in _BEGINNINGS.items() if sample.startswith(begin)), None)
    if sample.startswith(b"PK\x03\x04"):
        kind = next((Kind(*told) for name, told in _ZIPPED.items() if name in sample), kind)
    if re.match(rb"BZh[1-9]1AY&SY", sample):
        kind = Kind("compressed by bzip2", _UNPACK.format("bunzip2"))
    if sample[_TAR_AT : _TAR_AT + 5] == b"ustar":
        kind = Kind("a tar archive", "unpack it by: tar -xf FILE")
    if kind is None and form != "parquet" and (encoding := guess_encoding(sample)) is not None:
        fix = f"save it as UTF-8, for example by: iconv -f {encoding.iconv} -t UTF-8 FILE > NEW"
        kind = Kind(encoding.name, fix)
    if kind is None and form != "parquet" and _is_binary(sample):
        fix = "if it is compressed, decompress it, else save the rows as csv or Parquet by the program that wrote it"
        kind = Kind("no text", fix)
    return kind


def _is_binary(sample: bytes) -> bool:
    """Whether a file that begins so is no text of any encoding."""
    if sample.count(0) * 10 > len(sample):
        return True
    if len(_CONTROLS.intersection(sample)) < _FEW:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True
    return False


class Encoding(NamedTuple):
    """An encoding in words, and as `iconv` calls it."""

    name: str
    iconv: str


def guess_encoding(sample: bytes) -> Encoding | None:
    """Return the encoding of a text that begins so, if it is UTF-16, UTF-32 or ISO-2022; None if it may be UTF-8.

    Every second byte of UTF-16 is NUL for the letters of most languages' markup, and no text has so many.
    """
    if escaped := next((name for escape, name in _ESCAPES.items() if escape in sample), None):
        return Encoding(escaped, escaped)
    mark = next((name for begin, name in _MARKS.items() if sample.startswith(begin)), None)
    if mark is not None:
        return Encoding(mark, mark)
    for first, order in ((0, "BE"), (1, "LE")):
        halves = sample[first::2], sample[1 - first :: 2]
        if halves[0].count(0) * 3 > len(sample) and halves[1].count(0) * 20 < len(sample):
            return Encoding("UTF-16 without a byte order mark", f"UTF-16{order}")
    return None
