"""Reads the Parquet files of anybody: pandas, polars, Arrow, Spark, `datasets`.

Each type becomes text as a person would write it; the types of columns that the task does not name do not matter.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptpipeline.data.parquet import is_encrypted, open_parquet
from ptpipeline.data.table import (
    MAX_ROWS,
    NO_CLASS,
    Column,
    Listed,
    Places,
    Table,
    Wanted,
    collect,
    expect_text,
    locate,
    too_many,
)
from ptpipeline.data.writing import is_text, write_array
from ptpipeline.errors import ArtifactError, DataError
from ptpipeline.foreign import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BYTES = 4 * 2**30  # of the wanted columns as they are unfolded
BATCH, ARRAY = 8192, 64 * 2**20  # rows of an array, and what its texts may unfold into

_MAGIC, _FOOTER, _BLOCK = b"PAR1", b"\x15", 2**20  # how a file begins and ends, how a footer begins; bytes read at once

_PERIODS = (
    "column {0!r}, which data.{1} names, holds periods of pandas, numbers in the file; write them as text by: "
    "python -c 'import pandas, sys; rows = pandas.read_parquet(sys.argv[1]); "
    'rows[sys.argv[3]] = rows[sys.argv[3]].map(str, na_action="ignore"); rows.to_parquet(sys.argv[2])\' '
    "FILE NEW.parquet {0}"
)


def read_parquet(name: str, path: Path, wanted: Sequence[Wanted]) -> Table:
    """Return the wanted columns of a Parquet file.

    Raises DataError if it has no rows or too many, lacks a wanted column or has it twice, or if a wanted column holds
    nested values, or none of text for a field of texts; pyarrow's own errors if it is no Parquet file: call it within
    `parsing`.
    """
    schema = open_parquet(str(path)).schema_arrow
    at = locate(name, schema.names, wanted)
    types = {column: _plain_type(schema.field(index).type) for column, index in at.items()}
    for one in wanted:
        if one.needed and _name_extension(schema.field(at[one.column])) == "pandas.period":
            raise DataError(f"{name}: {_PERIODS.format(one.column, one.field)}")
        _check_type(name, one, types[one.column])
    reader = _Reader(path, [column for column, kind in types.items() if is_text(kind)])
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        if is_encrypted(reader.plain.metadata, file.read()):
            raise DataError(f"{name}: the file has encrypted columns; write it without encryption")
    try:
        chunks = reader.list_chunks(list(at))
    except (OSError, ValueError, NotImplementedError):  # of a file behind another, the footer tells wrong places
        _check_single(name, path, 0, [])
        raise
    rows = reader.count_rows()
    if (stated := reader.plain.metadata.num_rows) != rows:
        raise DataError(f"{name}: states {stated} rows, and {rows} in its parts: the file is damaged; write it again")
    _check_bounds(name, reader.plain.metadata.num_rows, chunks)
    _check_single(name, path, reader.plain.metadata.serialized_size, chunks)
    codes = {column: _class_names(schema, column) for column in at}
    cells: dict[str, list[str | None]] = {column: [] for column in at}
    adders = {column: collect(cells[column]) for column in at}
    needed = {one.column: one for one in wanted}
    unfolded = 0
    for column in at:
        names = codes[column]
        for array in reader.arrays(column):
            unfolded += array.nbytes
            if unfolded > MAX_BYTES:
                raise DataError(f"{name}: its columns unfold into more than {MAX_BYTES} bytes; give a part of it")
            values = write_array(name, array, needed[column], len(cells[column]))
            named = values if names is None else [names.get(value, value) for value in values]
            _add(named, cells[column], adders[column])
        if len(cells[column]) != rows:
            raise DataError(
                f"{name}: column {column!r} has {len(cells[column])} values for {rows} rows: the file is damaged; "
                "write it again"
            )
    columns = {column: Column(cells[column], (_describe(types[column]),), _turn_round(codes[column])) for column in at}
    return Table(list(schema.names), columns, Places())


def list_fields(path: Path) -> Listed:
    """Return the columns that hold no nested values, and those that do."""
    import pyarrow.types as types

    schema = open_parquet(str(path)).schema_arrow
    nested = [types.is_nested(_plain_type(field.type)) for field in schema]
    names = list(zip(schema.names, nested, strict=True))
    return Listed([name for name, inner in names if not inner], [name for name, inner in names if inner])


class _Reader:
    """Gives the columns of a file in arrays of some megabytes, whatever they unfold into.

    A dictionary of one long text may stand for a million rows. So it is looked at first, in a reader that does not
    unfold it, and its longest text bounds the rows of an array.
    """

    def __init__(self, path: Path, texts: Sequence[str]) -> None:
        self.plain, self.folded, self.texts = open_parquet(str(path)), open_parquet(str(path), texts), texts
        self._names = [self.plain.schema.column(index).path for index in range(len(self.plain.schema))]

    def count_rows(self) -> int:
        """Return how many rows the groups of the file state."""
        footer = self.plain.metadata
        return sum(footer.row_group(group).num_rows for group in range(footer.num_row_groups))

    def list_chunks(self, columns: Sequence[str]) -> list[Any]:
        """Return what the footer says of each group of the columns.

        Arrow ends the process if it is asked for what a damaged footer says; so a value of each is read first, for
        which it raises its own errors.
        """
        groups, chunks = range(self.plain.num_row_groups), []
        for group in groups:
            for column in columns:
                next(self._batches(self.plain, column, group, 1), None)
        for group in groups:
            footer = self.plain.metadata.row_group(group)
            places = [index for index in range(footer.num_columns) if self._names[index] in columns]
            chunks += [footer.column(index) for index in places]
        return chunks

    def arrays(self, column: str) -> Iterator["pa.Array"]:
        """Yield the values of a column in order."""
        import pyarrow.types as types

        folded = types.is_dictionary(self.plain.schema_arrow.field(column).type)
        for group in range(self.plain.num_row_groups):
            if folded:
                yield from self.plain.read_row_group(group, [column], use_threads=False).column(column).chunks
                continue
            rows = self._count_rows(column, group) if column in self.texts else BATCH
            for batch in self._batches(self.plain, column, group, rows):
                yield batch.column(column)

    def _count_rows(self, column: str, group: int) -> int:
        """How many rows an array may have: none unfolds into more than ARRAY bytes, but for a single long text."""
        import pyarrow.compute as pc
        import pyarrow.types as types

        encodings = self._list_encodings(column, group)
        if "DELTA_BYTE_ARRAY" in encodings:  # a text may repeat most of the one before it
            return 1
        if "DELTA_LENGTH_BYTE_ARRAY" in encodings:  # each text stands there whole, and Arrow makes no dictionary of it
            return BATCH
        first = next(self._batches(self.folded, column, group, 1), None)
        if first is None:
            return BATCH
        texts = first.column(column)
        if not types.is_dictionary(texts.type):  # `read_dictionary` mistakes `a.b` for a field `b` of a column `a`
            return 1
        longest = pc.max(pc.binary_length(texts.dictionary)).as_py() or 1
        return max(1, min(BATCH, ARRAY // longest))

    def _list_encodings(self, column: str, group: int) -> set[str]:
        footer = self.plain.metadata.row_group(group)
        chunks = (footer.column(index) for index, name in enumerate(self._names) if name == column)
        return {encoding for chunk in chunks for encoding in chunk.encodings}

    def _batches(self, file: Any, column: str, group: int, rows: int) -> Iterator["pa.RecordBatch"]:
        return iter(file.iter_batches(batch_size=rows, row_groups=[group], columns=[column], use_threads=False))


def _add(values: Any, cells: list[str | None], add: Callable[[str], None]) -> None:
    for value in values:
        if value is None:
            cells.append(None)
        else:
            add(value)


def _check_bounds(name: str, rows: int, chunks: Sequence[Any]) -> None:
    if rows > MAX_ROWS:
        raise too_many(name)
    stated = sum(chunk.total_uncompressed_size for chunk in chunks)
    if stated > MAX_BYTES:
        raise DataError(
            f"{name}: its columns unfold into {stated} bytes, at most {MAX_BYTES} allowed; give a part of it"
        )


def _check_single(name: str, path: Path, footer: int, chunks: Sequence[Any]) -> None:
    """Raise DataError if the file is several behind each other (`cat *.parquet`): the last footer alone would count.

    Then there are bytes between the last column and the footer, whose size is given, as where a file has an index of
    its pages or columns that are not wanted.
    """
    begins = [min(filter(None, (one.dictionary_page_offset, one.data_page_offset)), default=0) for one in chunks]
    end = max((begin + one.total_compressed_size for begin, one in zip(begins, chunks, strict=True)), default=0)
    if end + footer + 2 * len(_MAGIC) < path.stat().st_size and _find_joint(path):
        raise DataError(
            f"{name}: holds several Parquet files, one behind the other, of which the last alone would be read; give "
            "each as a file of its own"
        )


def _find_joint(path: Path) -> bool:
    """Whether a footer ends within the file, and another file begins there; a text may hold the same letters."""
    with path.open("rb") as file:
        for begin in range(0, path.stat().st_size, _BLOCK):
            file.seek(begin)
            for found in re.finditer(_MAGIC * 2, file.read(_BLOCK + len(_MAGIC) * 2)):
                at = max(0, begin + found.start() - 4)  # of the length of the footer before it
                file.seek(at)
                length = int.from_bytes(file.read(4), "little")
                file.seek(max(0, at - length))
                if length < at and file.read(1) == _FOOTER:
                    return True
    return False


# ---------------------------------------------------------------- types


def _plain_type(kind: Any) -> Any:
    """The type of the values themselves, below an extension type and a dictionary."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = pa.bool_() if kind.extension_name == "arrow.bool8" else kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _check_type(name: str, one: Wanted, kind: Any) -> None:
    import pyarrow.types as types

    if types.is_nested(kind) or (one.text and not is_text(kind) and not types.is_null(kind)):
        found = "nested values" if types.is_nested(kind) else kind
        raise DataError(f"{name}: {expect_text(one, str(found))}")


def _name_extension(field: Any) -> str:
    """The name of an extension type, whether Arrow knows it or not: pandas makes its own known as it is imported."""
    import pyarrow as pa

    if isinstance(field.type, pa.BaseExtensionType):
        return str(field.type.extension_name)
    return str((field.metadata or {}).get(b"ARROW:extension:name", b"").decode(errors="replace"))


def _describe(kind: Any) -> str:
    import pyarrow.types as types

    names = {
        "booleans": types.is_boolean,
        "integers": types.is_integer,
        "numbers": lambda one: types.is_floating(one) or types.is_decimal(one),
        "dates": lambda one: types.is_date(one) or types.is_timestamp(one),
        "times": types.is_time,
        "text": lambda one: is_text(one) or types.is_null(one),
    }
    return next((name for name, check in names.items() if check(kind)), str(kind)[:40])


def _class_names(schema: Any, column: str) -> dict[str | None, str | None] | None:
    """The name of each number of a column that `datasets` wrote as a ClassLabel; None for any other column."""
    import pyarrow.types as types

    stated = (schema.metadata or {}).get(b"huggingface")
    if stated is None or not types.is_integer(schema.field(column).type):
        return None
    try:
        features = parse_json(stated, "the metadata")["info"]["features"]
        names = features[column]["names"] if features[column]["_type"] == "ClassLabel" else None
    except (ArtifactError, LookupError, TypeError):
        return None  # what it says is no more than a hint
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return {NO_CLASS: None, **{str(number): name for number, name in enumerate(names)}}


def _turn_round(codes: dict[str | None, str | None] | None) -> dict[str, str]:
    return {name: str(code) for code, name in (codes or {}).items() if name is not None}
