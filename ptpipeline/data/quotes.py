"""Finds rows of a csv file that seem to have swallowed others: a quote opened, and closed many lines later by chance.

A text of several lines is common and right. A swallowed row shows by its lines: split at the delimiter, they are whole
rows, of whose cells in columns of few values at least half stand there in other rows too.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

MAX_LINES = 200  # that are looked at, of one cell
MAX_VALUES, MAX_VALUE = 50, 60  # of a column of few values; characters of one that is compared
UNJUDGED = 1000  # first rows that are judged by all rows; a later one by those before it too, so that few are kept
LEAST_COMMAS = 3  # cells of a tsv that hold a comma and stand in quotes, as Excel writes all of these and no others
PLAIN_LINES, PLAIN_PAIRS = 3, 10  # lines that are whole rows of three or more, or of two columns, without such a column

_LINE_END = re.compile("\r\n|\r|\n")


class _Candidate(NamedTuple):
    """The lines of a cell that would show another column: how many there are, how many of them have as many fields as a
    row, and the wanted cells of those with so many or more, None for one that the line does not show.
    """

    lines: int
    exact: int
    rows: list[tuple[str | None, ...]]


class Misquoted:
    """Looks at the rows of more than one line; `wanted` are the positions of the columns that the task names."""

    def __init__(self, delimiter: str, width: int, wanted: Sequence[int]) -> None:
        self.delimiter, self.width, self.wanted = delimiter, width, wanted
        self.candidates: dict[int, list[_Candidate]] = {}
        self.few: dict[int, set[str]] = {at: set() for at in wanted}  # the values of the columns that have few so far
        self.alone = 0  # rows of one line
        self.quoted: set[int] = set()  # rows of a tsv with a cell in the quotes of a csv
        self.commas: set[int] | None = set()  # those that hold a comma within them; None if that is no rule here

    def note(self, row: Sequence[str]) -> None:
        """Learn the values of a row of one line."""
        self.alone += 1
        many = False
        for at, values in self.few.items():
            if row[at] and row[at] not in values:
                values.add(row[at])
                many = many or len(values) > MAX_VALUES
        if many:
            self.few = {at: values for at, values in self.few.items() if len(values) <= MAX_VALUES}

    def look(self, number: int, row: Sequence[str]) -> None:
        """Keep the row by its number if half of the lines of one of its cells have the fields of a row."""
        for index, cell in enumerate(row):
            lines = [line.split(self.delimiter) for line in islice(_split(cell), MAX_LINES)]
            if len(lines) < 2:
                continue
            # The first line begins, and the last one ends, within this column.
            widths = [self.width - index, *[self.width] * (len(lines) - 2), index + 1]
            rows = [
                self._cells(line, index, first=at == 0, last=at == len(lines) - 1)
                for at, (line, width) in enumerate(zip(lines, widths, strict=True))
                if len(line) >= width > 1
            ]
            judged = sum(width > 1 for width in widths)
            if rows and 2 * len(rows) >= judged:
                exact = sum(len(line) == width > 1 for line, width in zip(lines, widths, strict=True))
                candidate = _Candidate(judged, exact, rows)
                if number <= UNJUDGED or self._is_swallowing(candidate):
                    self.candidates.setdefault(number, []).append(candidate)

    def look_for_csv(self, number: int, row: Sequence[str]) -> None:
        """Keep the row of a tsv by its number if a wanted cell is quoted as csv does it, its own quotes doubled."""
        for at in self.wanted:
            cell = row[at]
            enclosed = len(cell) > 1 and cell[0] == '"' == cell[-1] and '"' not in cell[1:-1].replace('""', "")
            if enclosed and '""' in cell[1:-1]:
                self.quoted.add(number)
            elif enclosed != ("," in cell):
                self.commas = None
            elif enclosed and self.commas is not None:
                self.commas.add(number)

    def find(self) -> frozenset[int]:
        """Return the numbers of the rows whose lines are rows, as far as all rows tell."""
        swallowing = {number for number, cells in self.candidates.items() if any(map(self._is_swallowing, cells))}
        commas = self.commas if self.commas and len(self.commas) >= LEAST_COMMAS else set()
        return frozenset(swallowing | self.quoted | commas)

    def _cells(self, line: list[str], index: int, first: bool, last: bool) -> tuple[str | None, ...]:
        """The wanted cells of a line: those before the text from its begin, those behind it from its end, because the
        text may hold the delimiter too.
        """
        before = {at: line[at] for at in self.wanted if at < index and not first}
        behind = {at: line[at - self.width] for at in self.wanted if at > index and not last}
        shown = before | behind
        return tuple(shown[at].strip('"')[:MAX_VALUE] if at in shown else None for at in self.wanted)

    def _is_swallowing(self, candidate: _Candidate) -> bool:
        few = {at: values for at, values in self.few.items() if values and 2 * len(values) <= self.alone}
        pairs = [
            [(cell, few[at]) for at, cell in zip(self.wanted, row, strict=True) if at in few and cell is not None]
            for row in candidate.rows
        ]
        if not any(pairs):
            least = PLAIN_LINES if self.width > 2 else PLAIN_PAIRS
            return candidate.exact == candidate.lines >= least
        like = sum(bool(row) and 2 * sum(cell in values for cell, values in row) >= len(row) for row in pairs)
        return like > 0 and 2 * like >= candidate.lines


def _split(cell: str) -> Iterator[str]:
    """Yield the lines of a cell; none of a cell of one line, but itself."""
    start = 0
    for end in _LINE_END.finditer(cell):
        yield cell[start : end.start()]
        start = end.end()
    yield cell[start:]
