"""The values of a database's rows as a person would write them, by the same rules as those of a Parquet file."""

import json
from collections.abc import Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any


def write_row(row: Sequence[Any]) -> list[str | None]:
    """Return each value as `write_value` does."""
    return [write_value(value) for value in row]


def write_value(value: Any) -> str | None:
    """Return a value as text, None for what is missing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, bool | float | Decimal | datetime | date | time | bytes):
        import pyarrow as pa

        from ptpipeline.data.writing import write_values

        if isinstance(value, Decimal) and not value.is_finite():
            return None if value.is_nan() else str(value)
        try:
            return write_values(pa.array([value]))[0]
        except pa.ArrowException:  # more digits, or years, than Arrow has
            return str(value)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def write_out(text: str | None) -> str | None:
    """Return the text with each byte that is not UTF-8 written out: a key has to be UTF-8."""
    return None if text is None else text.encode(errors="backslashreplace").decode()


def describe_value(value: Any) -> str:
    """Return what a value is, in the words of data/table.py."""
    if isinstance(value, str | bytes):
        return "text"
    if isinstance(value, bool):
        return "booleans"
    if isinstance(value, int):
        return "integers"
    if isinstance(value, float | Decimal):
        return "numbers"
    if isinstance(value, list | dict):
        return "lists" if isinstance(value, list) else "objects"
    return "dates" if isinstance(value, date | time) else f"values of type {type(value).__name__[:40]}"
