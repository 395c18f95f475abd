"""Reads JSON Lines: one object a line. What a column holds that the task does not name is not looked at.

Lines end with a line feed, a carriage return, or both; no other separator ends one, because JSON allows it in texts.
Numbers keep the digits of the file.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ptpipeline.data.json_shapes import OBJECT, advise_object, describe_list, explain, name_other
from ptpipeline.data.table import (
    MAX_ROWS,
    Column,
    Listed,
    NoRows,
    Places,
    Table,
    Wanted,
    check_wanted,
    collect,
    expect_text,
    line_numbers,
    too_many,
)
from ptpipeline.data.values import write_number
from ptpipeline.errors import DataError

MAX_LINE = 64 * 2**20  # characters
LOOKED_AT = 1000  # rows that tell the names of the columns
MAX_COLUMNS = 1000  # whose names are remembered for a message

_BEFORE, _BEHIND = "\ufeff\x1e", "\x1a"  # an object: marks, the record separator of RFC 7464; the end of a file in DOS
_KINDS = {bool: "booleans", list: "lists", dict: "objects"}


class _Integer(str):
    """The digits of a number without point."""


class _Number(str):
    """The digits of any other number."""


class _Repeated(dict[str, Any]):
    """An object in which a name stands twice; `twice` are these names."""

    twice: frozenset[str]


def read_json_lines(name: str, path: Path, wanted: Sequence[Wanted]) -> Table:
    """Return the wanted columns of a file of JSON Lines, and the line of each row.

    Raises DataError naming the line if it is no JSON object, or a wanted cell is not what its field needs.
    """
    lines, names = line_numbers(), dict[str, None]()
    cells: dict[str, list[str | None]] = {one.column: [] for one in wanted}
    kinds: dict[str, dict[str, None]] = {one.column: {} for one in wanted}
    columns = {one.column: one for one in sorted(wanted, key=lambda one: one.text)}  # as text, if two fields name it
    adders = [(one, collect(cells[name]), kinds[name], cells[name]) for name, one in columns.items()]
    for number, row in _rows(name, path, [one.column for one in wanted]):
        lines.append(number)
        if not names.keys() >= row.keys() and len(names) < MAX_COLUMNS:
            names.update(dict.fromkeys(row))
        if isinstance(row, _Repeated):
            _check_repeated(name, number, row, wanted)
        for one, add, kind, column in adders:
            value = row.get(one.column)
            if type(value) is str:
                kind["text"] = None
                add(value)
            elif value is None:
                column.append(None)
            else:
                add(_write(name, number, one, value, kind))
        if len(lines) > MAX_ROWS:
            raise too_many(name)
    if lines:
        check_wanted(name, list(names), wanted)
    read = {column: Column(values, tuple(kinds[column])) for column, values in cells.items()}
    return Table(list(names), read, Places("line", lines))


def _write(name: str, number: int, one: Wanted, value: Any, kinds: dict[str, None]) -> str:
    """Return a value that is no text as a person would write it."""
    kind = "integers" if isinstance(value, _Integer) else _KINDS.get(type(value), "numbers")
    if one.text or kind in ("lists", "objects"):
        raise DataError(f"{name}: line {number}: {expect_text(one, kind)}")
    kinds[kind] = None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, _Integer) else write_number(value)


# ---------------------------------------------------------------- lines


def list_keys(name: str, path: Path) -> Listed:
    """Return the keys of the first rows whose values are texts, numbers, booleans or missing, and the other keys."""
    nested: dict[str, bool] = {}
    for _, row in islice(_rows(name, path, ()), LOOKED_AT):
        for key, value in row.items():
            nested[key] = nested.get(key, False) or isinstance(value, dict | list)
    return Listed([key for key in nested if not nested[key]], [key for key in nested if nested[key]])


def _rows(name: str, path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each object with the number of its line; DataError if there is one alone, in which all rows stand."""
    objects = _objects(name, path)
    first = list(islice(objects, 1))
    if first and any(isinstance(value, dict | list) for value in first[0][1].values()):
        first += islice(objects, 1)
        columns = [first[0][1].get(column, {}) for column in wanted] or first[0][1].values()
        if len(first) == 1 and any(isinstance(value, dict | list) for value in columns):
            raise DataError(f"{name}: not readable as jsonl: {OBJECT}{advise_object(first[0][1])}")
    yield from chain(first, objects)


def _objects(name: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each object with the number of its line."""
    decoder = json.JSONDecoder(
        parse_int=_Integer, parse_float=_Number, parse_constant=_constant, object_pairs_hook=_object
    )
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise DataError(f"{name}: line {number} has more than {MAX_LINE} characters; expected one object")
            plain = line.lstrip(_BEFORE).rstrip(_BEHIND)
            if not plain.strip():
                continue
            try:
                row = decoder.decode(plain)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{name}: not readable as jsonl: {explain(path, number, plain, error)}") from None
            if not isinstance(row, dict):
                array = isinstance(row, list) and number == 1 and not file.read(MAX_LINE).strip()
                if array and not row:
                    raise NoRows(f"{name}: there are no rows")
                reason = describe_list(row, array) if number == 1 else ""
                reason = reason or f"line {number} is {name_other(row)}"
                raise DataError(f"{name}: not readable as jsonl: {reason}")
            yield number, row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated, seen = _Repeated(found), set[str]()
    repeated.twice = frozenset(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return repeated


def _constant(word: str) -> Any:
    """A cell of NaN is what pandas writes for a missing one; Infinity is a number without digits."""
    return None if word == "NaN" else _Number(word)


def _check_repeated(name: str, number: int, row: _Repeated, wanted: Sequence[Wanted]) -> None:
    for one in wanted:
        if one.column in row.twice:
            raise DataError(
                f"{name}: line {number} names {one.column!r} twice, which data.{one.field} names; leave one of them out"
            )
