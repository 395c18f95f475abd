"""How a file of text that a person gives seems to be laid out: its delimiter, or why it is no csv."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ptpipeline.data.dialect import BARS, FIXED, USUAL, has_gaps, is_drawn, split
from ptpipeline.data.table import tell_names
from ptpipeline.task.source import Source

LOOKED_AT = 1000  # lines that tell the dialect
_QUOTED = re.compile(r'(^|\t)"(?:[^\t"]|"")*""(?:[^\t"]|"")*"(\t|[\r\n]*$)')  # a field of a tsv as csv quotes it


def read_beginning(path: Path) -> list[str]:
    """Return the first lines that are not blank."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [line for line in islice(file, LOOKED_AT) if line.strip()]


def choose_dialect(source: Source, lines: Sequence[str]) -> Source:
    """Return the source with the delimiter that parts the first line with names into the most, if it is no comma; a tsv
    with the quotes of a csv becomes a csv.
    """
    if source.format not in ("csv", "tsv"):
        return source
    first = next((line for line in lines if not line.lower().lstrip('"').startswith("sep=")), "")
    best = max(USUAL, key=lambda sign: len(split(first, sign)))
    quoted = any(map(_QUOTED.search, lines)) or first.startswith('"')
    if source.format == "tsv" and best == "\t" and not quoted:
        return source
    several = len(split(first, best)) > 1
    return source.model_copy(update={"format": "csv", "delimiter": best if several and best != "," else None})


def advise_layout(lines: Sequence[str], names: Sequence[str], header: Sequence[str]) -> str | None:
    """Return what to do about a file that is no csv, or has one column alone; None if it may be drafted.

    names: the columns that can be taken. header: all names of the first line.
    """
    if any("|" in line for line in lines[:3]) and any(map(is_drawn, lines[:2])):
        return BARS
    if len(names) > 1 or not lines:
        return None
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
    return (
        f"there is one column ({tell_names(names)}); expected one of texts and one of labels: if the first line is a "
        "title, delete it, and if another sign parts the columns, write them as csv"
    )
