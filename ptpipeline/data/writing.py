"""Writes the values of Arrow's arrays as a person would: of Parquet files, and of databases."""

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ptpipeline.data.table import Wanted
from ptpipeline.data.values import write_number
from ptpipeline.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_NO_DATE = "<value out of range"  # what Arrow writes of one
_TIME = re.compile(r"(?:(\S+) )?(\d\d:\d\d:\d\d)(?:\.(\d+))?(.*)")


def write_array(name: str, array: "pa.Array", one: Wanted, before: int) -> list[str | None]:
    """Return the values of a column as text, behind so many rows before them.

    Raises DataError if Arrow cannot write one, unless the column is looked at only.
    """
    import pyarrow as pa

    fix = "correct it, or write the column as text in the file"
    try:
        values = write_values(array)
    except (pa.ArrowException, OverflowError):  # a zone that this machine has not, or a duration of too many years
        if not one.needed:
            return write_values(array.view(pa.int64()))
        raise DataError(f"{name}: column {one.column!r} holds {array.type}, which cannot be written; {fix}") from None
    if one.needed and not is_text(array.type):
        row = next((row for row, value in enumerate(values, before + 1) if value and value.startswith(_NO_DATE)), 0)
        if row:
            raise DataError(f"{name}: column {one.column!r} holds a date that no calendar has, in row {row}; {fix}")
    return values


def write_values(array: "pa.Array") -> list[str | None]:
    """Return the values of an array as text, None for what is missing; NaN is missing too."""
    import pyarrow as pa
    import pyarrow.types as types

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.bool8":
        return write_values(array.storage.cast(pa.bool_()))
    if isinstance(kind, pa.BaseExtensionType):
        return [None if value is None else str(value) for value in array.to_pylist()]
    if types.is_dictionary(kind):
        values = write_values(array.dictionary)
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    if is_text(kind):
        return _write_texts(array)
    if types.is_null(kind):
        return [None] * len(array)
    if not (types.is_primitive(kind) or types.is_decimal(kind)) or types.is_duration(kind) or types.is_interval(kind):
        return [None if value is None else str(value) for value in array.to_pylist()]
    written = array.cast(pa.float32() if types.is_float16(kind) else kind).cast(pa.string()).to_pylist()
    return [None if text is None else _shorten(kind, text) for text in written]


def _shorten(kind: Any, text: str) -> str | None:
    import pyarrow.types as types

    if types.is_floating(kind):
        return None if text in ("nan", "-nan") else write_number(text)
    if types.is_decimal(kind):
        text = format(Decimal(text), "f") if "E-" in text else text  # as Arrow writes what is near zero
        return text.rstrip("0").rstrip(".") if "." in text and "E" not in text else text
    if types.is_timestamp(kind) or types.is_time(kind):
        return _shorten_time(text)
    return text


def _shorten_time(text: str) -> str:
    """A time without zeros behind its seconds; a date alone if it is midnight in no particular zone."""
    found = _TIME.fullmatch(text)
    if found is None:
        return text
    day, time, fraction, zone = found[1], found[2], (found[3] or "").rstrip("0"), found[4]
    if day and time == "00:00:00" and not fraction and not zone:
        return day
    return f"{f'{day} ' if day else ''}{time}{f'.{fraction}' if fraction else ''}{zone}"


def _write_texts(array: "pa.Array") -> list[str | None]:
    """Bytes that are not UTF-8 become halves of surrogate pairs, as in a text file."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_string_view(array.type) or types.is_large_string(array.type):
        array = array.cast(pa.large_binary() if types.is_large_string(array.type) else pa.binary_view())
    elif types.is_string(array.type):
        array = array.cast(pa.binary())
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in array.to_pylist()]


def is_text(kind: Any) -> bool:
    """Whether the type holds text; Spark and Impala write texts as plain bytes."""
    import pyarrow.types as types

    checks = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_binary_view,
        types.is_fixed_size_binary,
    )
    return any(check(kind) for check in checks)
