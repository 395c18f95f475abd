"""What a file of rows holds, as `ptp init` sees it: its columns, and which look like texts and labels."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flows.on_demand.layout import advise_layout, advise_nested, choose_dialect, read_beginning
from ptpipeline.archives import unfold
from ptpipeline.data.dialect import SINGLE, advise_format, are_single_quoted
from ptpipeline.data.files import list_columns, load_file
from ptpipeline.data.joined import Joined, join
from ptpipeline.data.local import find_rows_file, tell_format
from ptpipeline.data.table import NoRows, Part, Table, Wanted, tell_names
from ptpipeline.errors import DataError
from ptpipeline.foreign import parsing
from ptpipeline.task.labels import MAX_LABELS
from ptpipeline.task.source import Source

_WORDS = re.compile(r"[^\W\d_]\s+[^\W\d_]|[^\x00-\x7f]")  # two words, or a letter of a script that may part none
_FIELD = re.compile(r"(?!text$)[A-Za-z_][A-Za-z0-9_]{0,62}")
_TEXT = (
    "text",
    "sentence",
    "review",
    "content",
    "body",
    "comment",
    "message",
    "tweet",
    "document",
    "question",
    "title",
)
_LABEL = ("label", "labels", "class", "category", "target", "sentiment", "intent", "polarity", "topic", "rating", "y")
# Two texts of which a label says how they stand to each other, or a question is asked about the first: by their names.
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("texta", "textb"),
    ("context", "question"),
    ("passage", "question"),
    ("query", "document"),
    ("query", "passage"),
    ("claim", "evidence"),
    ("instruction", "input"),
)
_ASKED = ("context", "passage")  # the first of a pair whose question has an answer
_TARGET = (
    "summary",
    "highlights",
    "headline",
    "answer",
    "answers.text.0",
    "completion",
    "response",
    "output",
    "translation",
    "reference",
    "target",
)
_FRACTION = re.compile(r"-?\d*\.\d+(?:e-?\d+)?")  # no number of a row
MERGED = "if cells were merged in a sheet, write their value into each of them"
MAX_MEAN = 60  # characters of a label that is guessed
_LOOKED_AT = 1000  # cells that tell whether a column has words


class Seen(NamedTuple):
    """One column: what it holds, how many cells are filled and different, and their mean length in characters.

    `words`: whether most of the first cells have words, as texts do, and names, addresses and times do not.
    """

    column: str
    holds: str
    filled: int
    different: int
    mean_length: float
    words: bool = True


class Sketch(NamedTuple):
    """Files of rows as they were found: the source that reads them, their plain columns, and what is in them.

    `twice` counts the columns of each name that stands there several times, `nested` are the columns of lists and
    objects, `unnamed` counts those without a name, but for the first (`headless`), which pandas writes: none of them is
    taken.
    `given` are the sources of dev and test rows, if files of their own hold them: the table has their rows too.
    """

    source: Source
    table: Table | Joined
    rows: int
    seen: list[Seen]
    twice: dict[str, int]
    nested: list[str]
    unnamed: int = 0
    headless: bool = False
    given: Mapping[str, Source] = {}

    @property
    def name(self) -> str:
        """The files, for messages."""
        return ", ".join(path for source in (self.source, *self.given.values()) for path in source.paths)


def look(path: Path, form: str | None, home: Path, known: Collection[str] = (), delimiter: str | None = None) -> Sketch:
    """Read a file of rows; `known` are columns of other files, which it may have alone.

    form, delimiter: how it is written, by default as its name and its lines tell.

    Raises NotFound if there is none, DataError if it cannot be read or has no plain column.
    """
    path = Path(path)
    file = find_rows_file(path)
    written = {"path": str(path), "format": form or tell_format(path), "delimiter": delimiter}
    with parsing(f"{path}: --delimiter", "it is one character between the fields of a csv", DataError):
        source = Source.model_validate(written)
    with unfold(file, str(path), home) as plain:
        lines = read_beginning(plain) if source.format in ("csv", "tsv") else []
        source = source if form == "tsv" or delimiter else choose_dialect(source, lines)
        listed = list_columns(str(path), plain, source)
        counts = Counter(listed.plain)
        names = [name for name, count in counts.items() if name.strip() and count == 1]
        if not listed.plain and not listed.nested:
            raise NoRows(f"{path}: no row has a value; expected at least one column of texts and one of labels")
        if not names:
            raise DataError(
                f"{path}: no column of plain values{_tell_nested(listed.nested)}; expected at least one of texts and "
                f"one of labels{f': {advise_nested(source, listed.nested)}' if listed.nested else ''}"
            )
        advice = advise_format(names[0]) or (SINGLE if lines and are_single_quoted(names) else None)
        if advice is None and not set(names) <= set(known):
            advice = advise_layout(lines, names, listed.plain)
        if advice is not None:
            raise DataError(f"{path}: {advice}")
        table = load_file(str(path), plain, source, [Wanted(name, "text", needed=False) for name in names])
    rows = len(next(iter(table.columns.values())).cells)
    twice = {name: count for name, count in counts.items() if count > 1 and name.strip()}
    unnamed = sum(not name.strip() for name in listed.plain[1:])
    headless = any(not name.strip() for name in listed.plain[:1])
    return Sketch(source, table, rows, [_see(name, table) for name in names], twice, listed.nested, unnamed, headless)


def _tell_nested(names: Sequence[str]) -> str:
    return f" ({tell_names(names)}: lists or objects)" if names else ""


def tell_twice(sketch: Sketch) -> str:
    """Return the names that several columns have, in words."""
    return ", ".join(f"{name!r} is the name of {count} columns" for name, count in sketch.twice.items())


def _see(name: str, table: Table | Joined) -> Seen:
    column = table.columns[name]
    filled = [cell for cell in column.cells if cell is not None and cell.strip()]
    mean = sum(map(len, filled)) / len(filled) if filled else 0.0
    words = sum(map(_has_words, filled[:_LOOKED_AT])) * 2 > min(len(filled), _LOOKED_AT)
    return Seen(name, " and ".join(column.kinds) or "nothing", len(filled), len(set(filled)), mean, words)


def _has_words(cell: str) -> bool:
    return _WORDS.search(cell) is not None and sum(map(str.isalpha, cell)) > sum(map(str.isdigit, cell))


def join_sketches(sketches: Sequence[Sketch]) -> Sketch:
    """Return several files as one. Raises DataError if they are written unlike, or have no column in common."""
    first = sketches[0]
    if len(sketches) == 1:
        return first
    unlike = next(
        (one for one in sketches if one.source.model_copy(update={"path": first.source.path}) != first.source), None
    )
    if unlike is not None:
        raise DataError(
            f"{unlike.name}: is written in another way than {first.name}: name files that are written alike"
        )
    common = [one.column for one in first.seen if all(one.column in other.table.columns for other in sketches)]
    if len(common) < 2:  # a text and its label
        raise DataError(
            f"{first.name} and {sketches[1].name}: have {'one column' if common else 'no column'} in common: name "
            "files of the same columns; parts of one file, of which the first alone has the names, become one by: cat "
            "FILES > NEW, and parts without names by: (echo text,label; cat FILES) > NEW"
        )
    table = join_tables(sketches, common)
    source = first.source.model_copy(update={"path": [path for one in sketches for path in one.source.paths]})
    return first._replace(
        source=source, table=table, rows=sum(one.rows for one in sketches), seen=[_see(name, table) for name in common]
    )


def join_tables(sketches: Iterable[Sketch], names: list[str]) -> Joined:
    """Return the columns of those names, one sketch behind the other."""
    return join(
        [
            Part(one.name, Table(names, {name: one.table.columns[name] for name in names}, one.table.places))
            for one in sketches
        ]
    )


def guess_text(sketch: Sketch) -> str | None:
    """Return the column that most looks like texts: by its name, else the longest that mostly differ.

    Names of rows are taken if there is nothing else, and not at all if there are lists or objects, in which the texts
    may stand; last are texts that repeat, as if several people labelled each, by their name alone.
    """
    long = [one for one in sketch.seen if _mostly_differs(one) and "text" in one.holds.split(" and ")]
    long = [one for one in long if one.column.strip().casefold() not in _TARGET] or long
    spoken = [one for one in long if one.words] or ([] if sketch.nested else long)
    repeated = [one for one in sketch.seen if one.words and one.holds == "text" and one.different > 1]
    longest = max(spoken, key=lambda one: one.mean_length, default=_NOBODY).column
    return _by_name(long, _TEXT) or longest or _by_name(repeated, _TEXT)


def guess_label(sketch: Sketch, text: str) -> str | None:
    """Return the column that most looks like labels: by its name, else the one of the fewest different values."""
    few = [one for one in sketch.seen if one.column != text and _are_few(one) and one.mean_length <= MAX_MEAN]
    return _by_name(few, _LABEL) or min(few, key=lambda one: one.different, default=_NOBODY).column or None


def _are_few(one: Seen) -> bool:
    return 2 <= one.different <= min(MAX_LABELS, one.filled // 2)


def guess_pair(sketch: Sketch) -> tuple[str, str] | None:
    """Return two columns whose names say that a row is about both of their texts."""
    texts = [one.column for one in sketch.seen if one.holds == "text" and one.words and is_field(one.column)]
    by_name = {re.sub("[^a-z0-9]", "", column.lower()): column for column in texts}
    return next(((by_name[one], by_name[two]) for one, two in _PAIRS if {one, two} <= by_name.keys()), None)


def guess_target(sketch: Sketch, texts: Sequence[str]) -> str | None:
    """Return the column of the answers, as texts, if its name says so and no other column looks like labels.

    Of a text and a question about it, whatever else has few values describes the text.
    """
    asked = len(texts) > 1 and texts[0].casefold() in _ASKED
    if not asked and guess_label(sketch, texts[0]) is not None:
        return None
    free = [one for one in sketch.seen if one.column not in texts and one.holds == "text" and _mostly_differs(one)]
    return _by_name(free, _TARGET)


def is_field(column: str) -> bool:
    """Whether a template can name a column as it is, beside `{text}`."""
    return _FIELD.fullmatch(column) is not None


def _mostly_differs(one: Seen) -> bool:
    return one.different * 2 > one.filled > 0


def explain_no_label(sketch: Sketch) -> str:
    """Return why the column that is called as labels are was not taken, or holds numbers, behind a semicolon."""
    named = _by_name(sketch.seen, _LABEL)
    if (one := next((one for one in sketch.seen if one.column == named), None)) is not None and one.filled:
        merged = f"; {MERGED}" if one.filled * 2 < sketch.rows else ""
        if _are_few(one):
            return (
                f"; {one.column!r} has values of {one.mean_length:.0f} characters: name it, if these are labels{merged}"
            )
        different = f"{one.different} different values" if one.different > 1 else "one value"
        return f"; {one.column!r} has {different}, and labels are 2 to {MAX_LABELS} that repeat{merged}"
    numbers = next(
        (one.column for one in sketch.seen if one.different > MAX_LABELS and _are_numbers(one, sketch)), None
    )
    if numbers is None:
        return ""
    return f"; a number such as {numbers!r} is cut into labels by bins (docs/tasks.md, Kinds of tasks)"


def _are_numbers(one: Seen, sketch: Sketch) -> bool:
    cells = [cell for cell in sketch.table.columns[one.column].cells if cell][:_LOOKED_AT]
    return all(map(_FRACTION.fullmatch, cells))


_NOBODY = Seen("", "", 0, 0, 0.0)


def _by_name(columns: Sequence[Seen], names: Sequence[str]) -> str | None:
    by_name = {one.column.strip().casefold(): one.column for one in reversed(columns)}  # the first of several
    return next((by_name[name] for name in names if name in by_name), None)
