"""What reading a file of rows gives: its columns as text, and the place of each row in the file."""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ptpipeline.data.near import normalise
from ptpipeline.errors import DataError
from ptpipeline.foreign import shorten

NO_CLASS = "-1"  # what `datasets` has in the place of a class's number for a row without label
MAX_ROWS = 10_000_000  # of a source file
MAX_KNOWN = 10_000  # short values of a column that are kept once

MAX_NAME, MAX_NAME_WORDS = 40, 3  # of a name or label that a message shows, in characters and in words
MAX_NAMES = 20  # of a list in a message
SHOWN = 3  # places in a message
_QUOTES = "\"'`“”„‘’‚«»"  # that people and editors put around a name
NESTED = ("lists", "objects", "nested values")


class NoRows(DataError):
    """A file of rows has none: no fault if it is one of several."""


class Wanted(NamedTuple):
    """A column that a task names: its name, the field of `data` that names it, whether its cells must be text, and
    whether each row must have a cell of it.
    """

    column: str
    field: str
    text: bool = False
    needed: bool = True


class Column(NamedTuple):
    """The cells of one column as a person would write them, None for a missing one.

    `kinds` says in words what the file holds there: text, integers, numbers, booleans, dates... `codes` gives the
    number of each class whose name stands in the cells, if the file stores numbers with a list of names.
    """

    cells: list[str | None]
    kinds: tuple[str, ...] = ("text",)
    codes: Mapping[str, str] = {}


class Listed(NamedTuple):
    """The names of a file's columns: those of plain values, and those of lists, objects and other nested values."""

    plain: list[str]
    nested: list[str]


class Places(NamedTuple):
    """Where each row stands: in a `line` of a text file, or as a `row` of a table; both are counted from 1.

    `numbers` holds the line of each row, and is None if a row's place is its own number.
    """

    word: str = "row"
    numbers: Sequence[int] | None = None

    def describe(self, rows: Iterable[int]) -> str:
        """Return the places of up to three rows in words: `lines 3, 7, 9 and more`."""
        ordered = sorted(rows)
        places = [number if self.numbers is None else self.numbers[number - 1] for number in ordered[:SHOWN]]
        word = self.word if len(ordered) == 1 else f"{self.word}s"
        return f"{word} {', '.join(map(str, places))}{' and more' if len(ordered) > SHOWN else ''}"


class JoinedPlaces(NamedTuple):
    """Where each row of several files stands; the rows of each file begin behind so many others."""

    names: Sequence[str]
    begins: Sequence[int]
    places: "Sequence[Places | JoinedPlaces]"

    def describe(self, rows: Iterable[int]) -> str:
        """Return the places of up to three rows in words: `a.csv line 3, b.csv lines 7, 9 and more`."""
        ordered = sorted(rows)
        ends = [*self.begins[1:], max(ordered, default=0)]
        told = []
        for name, begin, end, places in zip(self.names, self.begins, ends, self.places, strict=True):
            here = [row - begin for row in ordered[:SHOWN] if begin < row <= end]
            if here:
                told.append(f"{name} {places.describe(here)}")
        return f"{', '.join(told)}{' and more' if len(ordered) > SHOWN else ''}"


class Table(NamedTuple):
    """The wanted columns of a file, equally long, by name; `names` lists all columns of the file.

    `misquoted` has the numbers of the rows that seem to have swallowed others behind an unclosed quote.
    """

    names: list[str]
    columns: dict[str, Column]
    places: Places | JoinedPlaces
    misquoted: frozenset[int] = frozenset()


class Part(NamedTuple):
    """The wanted columns of one file, object or answer of a source, and its name in messages."""

    name: str
    table: Table


def line_numbers() -> "array[int]":
    """Return an empty array for the line of each row."""
    return array("I")


def collect(cells: list[str | None]) -> Callable[[str], None]:
    """Return what adds a cell to the list; the first short values that repeat are kept once."""
    known: dict[str, str] = {}

    def add(cell: str) -> None:
        if len(cell) <= MAX_NAME and len(known) < MAX_KNOWN:
            cell = known.setdefault(cell, cell)
        cells.append(known.get(cell, cell) if len(cell) <= MAX_NAME else cell)

    return add


def is_utf8(text: str) -> bool:
    """Whether the text can be written as UTF-8: no byte of the file was something else, no surrogate stands alone."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def too_many(name: str) -> DataError:
    """Return the error of a file of too many rows."""
    return DataError(f"{name}: more than {MAX_ROWS} rows; give a part of it")


def expect_text(one: Wanted, found: str) -> str:
    """Return what a wanted column holds that is no text, and what to do about it."""
    option = "--text" if one.text else "--label"
    inner = f"make a column of what stands within (`ptp init FILE {option} COLUMN` tells how)"
    fix = inner if found in NESTED else "write these values as text in the file"
    return f"column {one.column!r}, which data.{one.field} names, holds {found}; expected text: {fix}"


# ---------------------------------------------------------------- names


def check_wanted(name: str, names: Sequence[str], wanted: Sequence[Wanted], fix: str = "") -> None:
    """Raise DataError if the file lacks a column that a field of `data` names, with what to do about it."""
    known = set(names)  # a file may have thousands of columns, and `ptp init` wants them all
    for one in wanted:
        if one.column not in known:
            near = next((other for other in names if fold_name(other) == fold_name(one.column)), None)
            if near is not None:
                line = f"{json.dumps(near)} in the list" if one.field == "slices" else ""
                fix = f"names are compared exactly: write {line or f'data.{one.field}: {json.dumps(near)}'}"
            elif not fix and one.column.partition(".")[0] in known:
                fix = "what stands within objects is no column: give it one (`ptp init FILE --text COLUMN` tells how)"
            raise missing_column(name, names, one, fix)


def missing_column(name: str, names: Sequence[str], one: Wanted, fix: str) -> DataError:
    """Return the error of a file that lacks a column, with what to do about it."""
    return DataError(
        f"{name}: no column {one.column!r}, which data.{one.field} names; the columns are "
        f"{tell_names(names)}{fix and f'; {fix}'}"
    )


def fold_name(name: str) -> str:
    """Return the name as one reads it: without quotes, case, blanks, and what nobody sees."""
    return normalise(normalise(name).strip(_QUOTES))


def locate(name: str, names: Sequence[str], wanted: Sequence[Wanted]) -> dict[str, int]:
    """Return the position of each wanted column; DataError if one is not there, or twice."""
    check_wanted(name, names, wanted)
    counts, at = Counter(names), {column: index for index, column in enumerate(names)}
    for one in wanted:
        if (count := counts[one.column]) > 1:
            raise DataError(
                f"{name}: {count} columns have the name {one.column!r}, which data.{one.field} names; give each "
                "another name"
            )
    return {one.column: at[one.column] for one in wanted}


def tell_names(names: Sequence[str]) -> str:
    """Return the names of columns for a message; only their number if the first line reads like a row: no message
    shows the text of a row.
    """
    if any(map(is_no_name, names)):
        return f"{len(names)}, of which one is too long for a name; the first line may be a row"
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return (", ".join(map(show_name, names[:MAX_NAMES])) or "none") + more


def is_no_name(name: str) -> bool:
    """Whether the name of a column is so long that it may be the text of a row."""
    return len(name) > MAX_NAME or len(name.split()) > MAX_NAME_WORDS


def show_name(name: str) -> str:
    """Return a name as it is, or in quotes if it could be misread."""
    plain = name.isprintable() and name == name.strip() != "" and not set(name) & set(",;'\"")
    return name if plain else shorten(name)
