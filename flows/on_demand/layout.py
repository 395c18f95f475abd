"""How a file of text that a person gives seems to be laid out: its delimiter, or why it is no csv."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ptpipeline.data.dialect import BARS, FIXED, USUAL, has_gaps, is_drawn, split, straighten
from ptpipeline.data.json_shapes import SQUAD
from ptpipeline.data.table import is_utf8, tell_names
from ptpipeline.data.validation import MISSING
from ptpipeline.task.source import Source

LOOKED_AT, _COMPARED = 1000, 100  # lines that tell the dialect, and that are parted by each delimiter
_QUOTED = re.compile(r'(^|\t)"[^\t"]*""(?:[^\t"]|"")*"(\t|[\r\n]*$)')  # a field of a tsv as csv quotes it
_BY_BLANKS = re.compile(r'(?:"[^"]*"|\w+)(?: "[^"]*")+\s*')  # names as R's write.table parts them
_FASTTEXT = "__label__"  # what fastText writes before a label
_TO_TSV = (
    "the lines begin with labels as fastText writes them; write them as tsv by: "
    "(printf 'label\\ttext\\n'; sed -E 's/\\t/ /g; s/^__label__([^ ]+) */\\1\\t/' FILE) > NEW.tsv"
)
# What `cat -n`, `grep -n` and `grep -nH` write before each line: its number, and what takes that out.
_NUMBERED = (
    (re.compile(r" ++(\d{1,9}+)\t"), r"^ +[0-9]+\t"),
    (re.compile(r"(\d{1,9}+):(?!:)(?!\d\d[:\]])"), "^[0-9]+:"),  # no time, and no number before `::`
    (re.compile(r"[^:\"]++:(\d{1,9}+):(?!\d\d[\s\],.Z])"), "^[^:]+:[0-9]+:"),
)
_UNQUOTE = (
    "take it out of them by: python -c 'import csv, sys; [print(row[0]) for row in csv.reader(open(sys.argv[1], "
    'encoding="utf-8-sig", newline="")) if row]\' FILE > NEW.csv'
)
_SEVERAL = re.compile(r"(::+|\|\|+|@@+|##+|~~+|;;+|%%+)")  # signs that part columns together
_MAX_BELOW, _FEWEST = 3, 10  # lines of names below the first, and rows that tell them from rows
_UNFOLD = (
    "python -c 'import json, sys; "
    'unfold = lambda x, at="": {k: v for key, value in (x.items() if isinstance(x, dict) else enumerate(x)) '
    'for k, v in unfold(value, f"{at}{key}.").items()} if isinstance(x, (dict, list)) else {at[:-1]: x}; '
    "[print(json.dumps(unfold(row), default=str)) for row in ROWS]' FILE > NEW.jsonl"
)
_ROWS = {
    "jsonl": 'map(json.loads, filter(str.strip, open(sys.argv[1], encoding="utf-8-sig")))',
    "parquet": '__import__("pyarrow.parquet").parquet.ParquetFile(sys.argv[1]).read().to_pylist()',
}


class NamesBelow(NamedTuple):
    """How many lines below the names of the columns read like more names, and the columns that tell it."""

    lines: int
    columns: list[str]


def read_beginning(path: Path) -> list[str]:
    """Return the first lines that are not blank."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [line for line in islice(file, LOOKED_AT) if line.strip()]


def choose_dialect(source: Source, lines: Sequence[str]) -> Source:
    """Return the source with the delimiter that parts most lines as the first one, with names, and that into the most,
    if it is no comma; a tsv with the quotes of a csv becomes a csv.
    """
    if source.format not in ("csv", "tsv"):
        return source
    first = next((line for line in lines if not line.lower().lstrip('"').startswith("sep=")), "")
    if _BY_BLANKS.fullmatch(first):
        return source.model_copy(update={"format": "csv", "delimiter": " "})
    best = max(USUAL, key=lambda sign: _count_alike(first, lines, sign))
    quoted = any(map(_QUOTED.search, lines)) or first.startswith('"')
    if source.format == "tsv" and best == "\t" and not quoted:
        return source
    several = len(split(first, best)) > 1
    return source.model_copy(update={"format": "csv", "delimiter": best if several and best != "," else None})


def _count_alike(first: str, lines: Sequence[str], sign: str) -> tuple[bool, int, int]:
    """Return whether the character parts the first line, how many lines it parts into as many, and into how many."""
    width = len(split(first, sign))
    return width > 1, sum(len(split(line, sign)) == width for line in lines[:_COMPARED]) if width > 1 else 0, width


def advise_layout(lines: Sequence[str], names: Sequence[str], header: Sequence[str]) -> str | None:
    """Return what to do about a file that is no csv, or has one column alone; None if it may be drafted.

    names: the columns that can be taken. header: all names of the first line.
    """
    if any("|" in straighten(line) for line in lines[:3]) and any(map(is_drawn, lines[:2])):
        return BARS
    if lines and all(line.startswith(_FASTTEXT) for line in lines):
        several = any(line.count(_FASTTEXT) > 1 for line in lines)
        return f"{_TO_TSV}{'; of several labels in a line, the first becomes the label' if several else ''}"
    if front := next((front for number, front in _NUMBERED if _rise(number, lines)), None):
        return f"each line begins with its number: take it out by: sed -E 's/{front}//' FILE > NEW"
    if len(names) > 1 or not lines:
        return None
    if not all(map(is_utf8, header)):
        return "the first line is not UTF-8: save the file as UTF-8"
    if len(header) == 1 and has_gaps(lines[0]):
        return FIXED
    empty = len([name for name in header if not name.strip()])
    if empty:
        return (
            f"the first line names one column ({tell_names(names)}) and leaves {empty} without a name: if it is a "
            "title, delete what stands above the names of the columns, else name the columns"
        )
    if len(header) > 1:
        return None
    if lines[0].startswith('"') and any(len(split(header[0], sign)) > 1 for sign in USUAL):
        return f"each line stands in quotes as a whole: {_UNQUOTE}"
    if signs := _find_several(lines):
        return (
            f"there is one column ({tell_names(names)}); if {signs!r} parts the columns, put a tab in its place by: "
            f"sed 's/{signs}/\\t/g' FILE > NEW.tsv"
        )
    return (
        f"there is one column ({tell_names(names)}); expected one of texts and one of labels: if the first line is a "
        "title, delete it, and if another sign parts the columns, give it with --delimiter (put one in the place of "
        "several)"
    )


def _find_several(lines: Sequence[str]) -> str | None:
    """Return the signs that stand equally often in the first lines, and part columns there."""
    found = dict.fromkeys(_SEVERAL.findall(lines[0]))
    counts = {signs: {line.count(signs) for line in lines[:_COMPARED]} for signs in found}
    return next((signs for signs, numbers in counts.items() if len(numbers) == 1), None)


def _rise(number: re.Pattern[str], lines: Sequence[str]) -> bool:
    """Whether all lines, of which there are two at least, begin with such a number, each with a higher one."""
    found = [int(one[1]) for line in lines if (one := number.match(line)) is not None]
    return len(lines) == len(found) > 1 and all(map(int.__lt__, found, found[1:]))


def advise_nested(source: Source, nested: Sequence[str]) -> str:
    """Return the command that writes each value within lists and objects into a column of its own, such as `a.0.b`; of
    paragraphs with questions, as SQuAD writes them, each question as a row.
    """
    if "paragraphs" in nested:
        return f"write a row for each question by: {SQUAD.replace('ARTICLES', _ROWS[str(source.format)])}"
    command = _UNFOLD.replace("ROWS", _ROWS[str(source.format)])
    return f"write each value within lists and objects in a column of its own by: {command}"


def find_names_below(columns: Mapping[str, Sequence[str | None]], label: str, merged: bool) -> NamesBelow:
    """Return the first rows that are none, but a second line of names or questions, as tools for surveys write.

    In such a line some columns hold something else than in all rows behind it, and its label is that of no other row;
    or some columns of the first line have no name, as it was merged above this one (`merged`).
    """
    counts = Counter(columns[label])
    for lines in range(_MAX_BELOW, 0, -1):
        if len(columns[label]) < lines + _FEWEST:
            continue
        others = {name: cells for name, cells in columns.items() if name != label}
        odd = [name for name, cells in others.items() if all(_is_odd(cell, cells[lines:]) for cell in cells[:lines])]
        alone = all(counts[cell] == 1 and not _is_missing(cell) for cell in columns[label][:lines])
        filled = any(not _is_missing(cell) for name in odd for cell in others[name][:lines])
        if len(odd) > (0 if alone else 1) and (alone or merged or filled):
            return NamesBelow(lines, odd)
    return NamesBelow(0, [])


def _is_odd(cell: str | None, others: Sequence[str | None]) -> bool:
    """Whether a cell is empty or has no figure where all others are filled, or have one."""
    if cell is None or _is_missing(cell):
        return not any(map(_is_missing, others))
    if any(map(str.isdigit, cell)) and not cell.startswith('{"ImportId"'):
        return False
    return all(other and any(map(str.isdigit, other)) for other in others)


def _is_missing(cell: str | None) -> bool:
    return cell is None or not cell.strip() or cell in MISSING
