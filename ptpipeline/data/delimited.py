"""Reads csv and tsv: every cell is the text that stands in the file, so that `001`, `NA` and `null` stay.

The dialect is strict: what a quoted field may hold is what RFC 4180 says, because a lenient reader makes one text of a
hundred rows behind a quote that was never closed.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from ptpipeline.data.dialect import (
    BACKSLASH,
    BARS,
    BEHIND,
    SINGLE,
    USUAL,
    advise_delimiter,
    advise_format,
    advise_header,
    advise_row,
    are_single_quoted,
    find_delimiter,
    guess_delimiter,
    is_drawn,
)
from ptpipeline.data.quotes import Misquoted
from ptpipeline.data.table import (
    MAX_ROWS,
    Column,
    NoRows,
    Places,
    Table,
    Wanted,
    check_wanted,
    collect,
    fold_name,
    line_numbers,
    locate,
    missing_column,
    too_many,
)
from ptpipeline.errors import DataError
from ptpipeline.task.data import Source

MAX_FIELD, MAX_LINE = 16 * 2**20, 64 * 2**20  # characters

_DIRECTIVE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)  # Excel's own first line
END_OF_DOS = "\x1a"  # behind the last line
_AROUND = "\ufeff \t\"'"  # a name that is written once more
_TITLE_LINES = 10  # in which the names of the columns are looked for below a title
_ROW_NAMES = ("0", "1")  # of the first row, as R and pandas number rows


class Layout(NamedTuple):
    """The names of a file's columns, and where the wanted ones are."""

    names: list[str]
    at: dict[str, int]


def read_delimited(name: str, path: Path, source: Source, wanted: Sequence[Wanted]) -> Table:
    """Return the wanted columns of a csv or tsv file, and the line where each row begins.

    Raises DataError naming the line if a row has too many or too few fields, or its quotes enclose no field.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        records = _Records(name, path, file, source)
        layout = records.read_header(source, wanted)
        lines, misquoted = line_numbers(), Misquoted(records.delimiter, len(layout.names), list(layout.at.values()))
        cells: dict[str, list[str | None]] = {column: [] for column in layout.at}
        title, first = next(iter(layout.at.items()))
        title, most = title.casefold().strip(_AROUND), len(title) + 2
        adders = [(index, collect(cells[column])) for column, index in layout.at.items()]
        for row in records.rows(layout):
            lines.append(records.line)
            if len(row[first]) <= most and row[first].casefold().strip(_AROUND) == title:
                records.check_repeated(row, layout)
            for index, add in adders:
                add(row[index])
            if records.tsv:
                misquoted.look_for_csv(len(lines), row)
            elif records.last > records.line:
                misquoted.look(len(lines), row)
            else:
                misquoted.note(row)
            if len(lines) > MAX_ROWS:
                raise too_many(name)
    columns = {column: Column(values) for column, values in cells.items()}
    return Table(layout.names, columns, Places("line", lines), misquoted.find())


def list_header(name: str, path: Path, source: Source) -> list[str]:
    """Return the names in the header line, or those that the source gives."""
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return _Records(name, path, file, source).read_header(source, []).names


def _strip_mark(name: str) -> str:
    return name.lstrip("\ufeff")


class _Records:
    """The records of one file in order; `line` and `last` are the first and last line of the latest one."""

    def __init__(self, name: str, path: Path, file: IO[str], source: Source) -> None:
        csv.field_size_limit(MAX_FIELD)  # one for the process, and never lowered: another thread may read a long text
        self.name, self.path, self.file, self.source = name, path, file, source
        self.line = self.last = 0
        self.latest = ""  # the line that was read last
        self.ends: tuple[bool, bool] = (
            False,
            False,
        )  # of the record before and of this one: by a carriage return alone
        self.usual = False  # how the lines of the file end
        self.wanted: Sequence[Wanted] = ()
        self.first = False  # whether the next record is the first one behind a header line
        self.tsv = source.format == "tsv"
        self.delimiter = "\t" if self.tsv else source.delimiter or ","
        self.begun = self._take_directive(source)  # the lines that were read to look at them
        tsv = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        self.dialect: dict[str, Any] = tsv if self.tsv else {"delimiter": self.delimiter, "strict": True}
        self.stream = self._records(csv.reader(self._lines(), **self.dialect))

    def read_header(self, source: Source, wanted: Sequence[Wanted]) -> Layout:
        """Read the column names in the first line that is not blank, or take those that the task gives.

        A first line with all wanted names is the header, whatever the task gives: no row has the names of its columns.
        If it lacks the name of the first column, as R writes it, those that the task gives are taken.
        """
        self.wanted = wanted
        first = next(self.stream, None)
        if first is None:
            raise NoRows(f"{self.name}: there are no rows")
        self.usual = self.ends[1]
        if source.columns is None:
            self._check_header(first, wanted)
        elif not all(one.column in first for one in wanted):
            at = locate(self.name, source.columns, wanted)
            self._check_row(first, at)
            self.stream = chain([first], self.stream)
            return Layout(source.columns, at)
        self.first = True
        given = source.columns or []
        names = given if len(given) == len(first) + 1 else first
        return Layout(names, locate(self.name, names, wanted))

    def rows(self, layout: Layout) -> Iterator[list[str]]:
        """Yield the rows, each with as many fields as there are columns."""
        needed = [layout.at[one.column] for one in self.wanted if one.needed]
        width, least = len(layout.names), max(needed, default=1) + 1  # a text and an answer, if none is named yet
        for record in self.stream:
            yield record if len(record) == width else self._fit(record, width, least)
            self.first = False

    def check_repeated(self, row: list[str], layout: Layout) -> None:
        """Raise DataError if the row is the header line once more, as where files were written behind each other."""
        fold = fold_name if len(layout.at) > 1 else _strip_mark  # a text alone may be called as its column
        if all(fold(row[index]) == fold(column) for column, index in layout.at.items()):
            raise DataError(
                f"{self.name}: line {self.line} repeats the header line; delete the line, or "
                "put a line of names in front of the first one if that is a row too"
            )

    def _take_directive(self, source: Source) -> list[str]:
        """Take the delimiter that a first line `sep=;` names, and return that line as a blank one; else as it is."""
        line = self.file.readline(MAX_LINE).lstrip("\ufeff")  # some programs write a second mark behind the first
        found = None if self.tsv else _DIRECTIVE.fullmatch(line)
        if found is None:
            return [line]
        self.delimiter = source.delimiter or found[1]
        return ["\n"]

    def _lines(self) -> Iterator[str]:
        for line in self.begun:
            self.latest = line
            yield self._check_length(line)
        while line := self.file.readline(MAX_LINE):
            self.latest = line
            yield self._check_length(line)

    def _check_length(self, line: str) -> str:
        if len(line) == MAX_LINE:
            raise DataError(f"{self.name}: a line of more than {MAX_LINE} characters; expected one row a line")
        return line

    def _records(self, reader: Any) -> Iterator[list[str]]:
        """Yield what is not blank, and keep count of lines."""
        while True:
            start = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{self.name}: {self._explain(str(error), start, reader.line_num)}") from None
            if len(record) > 1 or (record and record[0].replace(END_OF_DOS, "").strip()):
                self.line, self.last = start, reader.line_num
                self.ends = self.ends[1], self.latest.endswith("\r")
                yield record

    def _fit(self, record: list[str], width: int, least: int) -> list[str]:
        """Return the record with `width` fields: empty ones behind them are no columns, and what no field of the task
        names may be missing.
        """
        if len(record) > width and not any(record[width:]):
            return record[:width]
        if least <= len(record) < width and not self._is_broken():
            return record + [""] * (width - len(record))
        fields = "1 field" if len(record) == 1 else f"{len(record)} fields"
        raise DataError(f"{self.name}: line {self.line} has {fields}, expected {width}; {self._fix(record, width)}")

    def _is_broken(self) -> bool:
        """Whether the record or the one before ends unlike the others: pandas does not quote a lone carriage return."""
        return any(end is not self.usual for end in self.ends)

    def _fix(self, record: list[str], width: int) -> str:
        if self._is_broken():
            quoted = "" if self.tsv else "stand in double quotes, or "
            return f"a carriage return within a text must {quoted}be taken out"
        if self.first and len(record) == width + 1 and record[0].strip('"') in _ROW_NAMES:
            return (
                "the rows begin with a name or number, for which the header line has none: put `row` and the delimiter "
                "in front of the header line"
            )
        return advise_row(record, width, self.delimiter, self.tsv, self._read_lines(self.line, self.last))

    def _read_lines(self, start: int, end: int) -> str:
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return "".join(islice(file, start - 1, end))

    def _explain(self, reason: str, start: int, end: int) -> str:
        if "field limit" in reason:
            return f"line {start}: a field of more than {MAX_FIELD} characters; shorten it, or close its quote"
        if "end of data" in reason:
            return (
                f"line {start}: a quote that opens in this row is never closed; close it, or write a quote that is "
                'part of the text as "" in a quoted field'
            )
        lines = self._read_lines(start, end)
        where = f"line {start}" if start == end else f"lines {start} to {end}"
        if self.line == 0 and (other := self._advise_first(lines)) is not None:
            return f"{where}: {other}"
        fix = BACKSLASH if '\\"' in lines else BEHIND
        more = "" if start == end else f"; if the quote in line {start} should close there, close it"
        return f"{where}: {fix}{more}"

    # ---------------------------------------------------------------- header

    def _advise_first(self, lines: str) -> str | None:
        sign = find_delimiter(lines, self.wanted) or guess_delimiter(lines, len(self.source.columns or ()))
        sign = sign or next((one for one in USUAL if one != self.delimiter and f'"{one}"' in lines), None)
        return advise_format(lines) or (None if sign is None else advise_delimiter(sign))

    def _check_header(self, names: list[str], wanted: Sequence[Wanted]) -> None:
        """Raise DataError if a wanted column is not there, with what may be the reason."""
        known = set(names)
        missing = [one for one in wanted if one.column not in known]
        if not missing:
            return
        fix = advise_header(self.latest, names, wanted, self.delimiter, self.tsv)
        fix = self._find_names({one.column for one in wanted}) or fix
        if fix is not None:
            raise missing_column(self.name, names, missing[0], fix)
        check_wanted(
            self.name, names, missing, "if the file has no header line, name its columns in data.source.columns"
        )

    def _find_names(self, wanted: set[str]) -> str | None:
        """Return what to do if the names of the columns stand in a later line, or the table is a drawn one."""
        drawn = is_drawn(self.latest)
        with suppress(DataError):
            for record in islice(self.stream, _TITLE_LINES):
                if drawn or is_drawn(self.latest):
                    return BARS
                if wanted <= set(record):
                    return f"the names of the columns seem to stand in line {self.line}: then delete what is above it"
        return None

    def _check_row(self, first: list[str], at: dict[str, int]) -> None:
        """Raise DataError if the first line of a file that should have no header line names a wanted column."""
        cells = {column: first[index] for column, index in at.items() if index < len(first)}
        same = next((column for column, cell in cells.items() if fold_name(cell) == fold_name(column)), None)
        if same is not None and are_single_quoted(first):
            raise DataError(f"{self.name}: line {self.line}: {SINGLE}")
        if same is not None:
            raise DataError(
                f"{self.name}: line {self.line} reads like a header line: column {same!r} holds its own name there; "
                "delete the line, or give the column another name in data.source.columns"
            )
