"""Finds rows of a csv file that seem to have swallowed others: a quote opened, and closed many lines later by chance.

A text of several lines is common and right. A swallowed row shows by its lines: split at the delimiter, they are whole
rows, whose cells in a column of few values are values that stand there in other rows too.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

MAX_LINES = 200  # that are looked at, of one cell
MAX_VALUES, MAX_VALUE = 50, 60  # of a column of few values; characters of one
PLAIN_LINES, PLAIN_PAIRS = 3, 10  # lines that are whole rows of three or more, or of two columns, without such a column

_LINE_END = re.compile("\r\n|\r|\n")


class _Candidate(NamedTuple):
    """How many lines a cell has before its last, and the wanted cells of those that have the fields of a row."""

    lines: int
    rows: list[tuple[str, ...]]


class Misquoted:
    """Looks at the rows of more than one line; `wanted` are the positions of the columns that `find` is given."""

    def __init__(self, delimiter: str, width: int, wanted: Sequence[int]) -> None:
        self.delimiter, self.width, self.wanted = delimiter, width, wanted
        self.candidates: dict[int, _Candidate] = {}

    def look(self, number: int, row: Sequence[str]) -> None:
        """Keep the row by its number if half of the lines of one of its cells have the fields of a row."""
        for index, cell in enumerate(row):
            lines = list(islice(_split(cell), MAX_LINES + 1))[:-1]
            if not lines or self.width < 2:
                continue
            starts = [[*row[:index], *self._fields(lines[0])], *map(self._fields, lines[1:])]
            rows = [tuple(line[at][:MAX_VALUE] for at in self.wanted) for line in starts if len(line) == self.width]
            if 2 * len(rows) >= len(lines):
                self.candidates[number] = _Candidate(len(lines), rows)

    def find(self, columns: Sequence[Sequence[str | None]]) -> frozenset[int]:
        """Return the numbers of the rows whose lines are rows, given the cells of the wanted columns."""
        if not self.candidates:
            return frozenset()
        known = [self._few_values(column) for column in columns]
        return frozenset(
            number for number, candidate in self.candidates.items() if self._is_swallowing(candidate, known)
        )

    def _is_swallowing(self, candidate: _Candidate, known: Sequence[set[str] | None]) -> bool:
        if not any(known):
            least = PLAIN_LINES if self.width > 2 else PLAIN_PAIRS
            return len(candidate.rows) == candidate.lines >= least
        like = sum(
            all(values is None or cell in values for cell, values in zip(row, known, strict=True))
            for row in candidate.rows
        )
        return like > 0 and 2 * like >= candidate.lines

    def _few_values(self, column: Sequence[str | None]) -> set[str] | None:
        """The values of a column that repeats a few of them, without the rows that are looked at."""
        values: set[str] = set()
        count = 0
        for number, cell in enumerate(column, 1):
            if cell and number not in self.candidates:
                values.add(cell[:MAX_VALUE])
                count += 1
                if len(values) > MAX_VALUES:
                    return None
        return values if values and 2 * len(values) <= count else None

    def _fields(self, line: str) -> list[str]:
        return next(csv.reader([line], delimiter=self.delimiter), [])


def _split(cell: str) -> Iterator[str]:
    """Yield the lines of a cell; none of a cell of one line, but itself."""
    start = 0
    for end in _LINE_END.finditer(cell):
        yield cell[start : end.start()]
        start = end.end()
    yield cell[start:]
