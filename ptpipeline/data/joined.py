"""Several files as one: their columns one behind the other, each row still known by its file and its place there."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from ptpipeline.data.table import MAX_ROWS, Column, JoinedPlaces, Part, Places, Table
from ptpipeline.errors import DataError

MAX_NAMED = 3  # files in the name of a source


class Joined(NamedTuple):
    """The columns of all files by name, where their rows stand, and which of them swallowed others."""

    name: str
    columns: dict[str, Column]
    places: Places | JoinedPlaces
    misquoted: frozenset[int]


def count_rows(table: Table) -> int:
    """Return the number of rows that were read."""
    return len(next(iter(table.columns.values())).cells)


def join(parts: Sequence[Part]) -> Joined:
    """Return the parts of a source as one; DataError if they have too many rows together."""
    names, tables = [name for name, _ in parts], [table for _, table in parts]
    counts = [count_rows(table) for table in tables]
    if sum(counts) > MAX_ROWS:
        raise DataError(f"{_join_names(names)}: more than {MAX_ROWS} rows together; give a part of them")
    begins = [0, *accumulate(counts)][:-1]
    misquoted = frozenset(row + begin for table, begin in zip(tables, begins, strict=True) for row in table.misquoted)
    if len(parts) == 1:
        return Joined(names[0], tables[0].columns, tables[0].places, misquoted)
    columns = {name: _join_columns([table.columns[name] for table in tables]) for name in tables[0].columns}
    places = JoinedPlaces(names, begins, [table.places for table in tables])
    return Joined(_join_names(names), columns, places, misquoted)


def _join_names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def _join_columns(columns: Sequence[Column]) -> Column:
    """The columns one behind the other; codes count if all columns that have some have the same."""
    kinds = dict.fromkeys(kind for column in columns for kind in column.kinds)
    codes = [column.codes for column in columns if column.codes]
    same = codes and all(one == codes[0] for one in codes)
    cells = columns[0].cells
    for column in columns[1:]:
        cells += column.cells
    return Column(cells, tuple(kinds), codes[0] if same else {})
