"""What `ptp init` finds odd in a file that it can read: notes for the person who lets the drafted task run."""

from collections.abc import Iterator
from itertools import combinations

from flows.on_demand.draft import Choice, Facts
from flows.on_demand.layout import advise_nested
from flows.on_demand.sketch import MERGED, Seen, Sketch, is_field, tell_twice
from ptpipeline.data.labels import write_latin
from ptpipeline.data.near import normalise
from ptpipeline.data.reencoded import describe_reencoded, find_reencoded
from ptpipeline.data.table import is_no_name, tell_names
from ptpipeline.data.validation import MISSING
from ptpipeline.foreign import shorten
from ptpipeline.records.prompts import MAX_NEW_TOKENS

_LONG, _MAX_TOLD = 20, 2  # characters of a text that may matter, and columns of them that are told
_FIRST = "the first line was taken for the names of columns; if it is a row, put a line of names in front"
_EACH = "if a row may have several, make a column and a task for each label (docs/tasks.md, Kinds of tasks)"


def find_doubts(sketch: Sketch, choice: Choice, facts: Facts) -> Iterator[str]:
    """Yield what a person should look at before the task runs, in a sentence each."""
    seen = {label: normalise(write_latin(label)) for label in sorted(facts.labels)}
    for one, two in combinations(seen, 2):
        if seen[one] == seen[two]:
            how = "differ in case alone" if one.casefold() == two.casefold() else "look alike"
            yield f"labels: {one!r} and {shorten(two)} {how}; if they are one, give it one spelling"
    for label in sorted(facts.labels.keys() & MISSING):
        yield f"labels: {label!r} reads like a missing value; if these rows have no label, leave the cell empty"
    yield from _find_alone(sketch, choice, facts)
    yield from _find_several(facts)
    if choice.second:
        yield (
            f"template: reads {shorten(choice.text)} and {shorten(choice.second)}, as their names say; if one text is "
            "enough, name it with --text"
        )
        yield from _find_empty(sketch, choice)
    if facts.longest > MAX_NEW_TOKENS:
        yield (
            f"target: the longest may have more than the {MAX_NEW_TOKENS} tokens that a task generates; if `ptp run` "
            "names its row, shorten it or leave the row out"
        )
    if facts.unlabelled * 2 > sketch.rows:
        yield f"{'target' if choice.free else 'label'}: most rows have none, and are left out; {MERGED}"
    others = [one for one in sketch.seen if one.column not in (*choice.texts, choice.label) and _is_text(one)]
    for other in others[:_MAX_TOLD]:
        named = is_field(other.column)
        field, column = (
            (other.column, "") if named else ("more", f", and data.fields: {{more: {shorten(other.column)}}}")
        )
        yield (
            f"text: {shorten(other.column)} looks like text too; if the label depends on it, write {{{field}}} beside "
            f"{{text}} in the template{column}"
        )
    if facts.broken:
        yield f"text: {facts.broken} are not UTF-8, and `ptp ingest` leaves their rows out; save the file as UTF-8"
    if (found := find_reencoded([cell or "" for cell in sketch.table.columns[choice.text].cells])) is not None:
        where = sketch.table.places.describe(index + 1 for index in found.texts)
        yield f"text: {len(found.texts)} texts ({where}) {describe_reencoded(found)}"
    if _is_row_first(sketch):
        yield f"source: {_FIRST}"


def advise_missing(sketch: Sketch) -> str:
    """Return what may be the reason why no column looks like texts or labels, behind a semicolon."""
    if sketch.twice:
        return f"; {tell_twice(sketch)}: give each another name"
    if sketch.nested:
        return f"; if it stands within {tell_names(sketch.nested)}, {advise_nested(sketch.source, sketch.nested)}"
    if sketch.headless or sketch.unnamed:
        return "; columns without a name are not taken: give each one"
    return f"; {_FIRST}" if _is_row_first(sketch) else ""


def _is_row_first(sketch: Sketch) -> bool:
    return sketch.source.format in ("csv", "tsv") and any(is_no_name(one.column) for one in sketch.seen)


def _is_text(one: Seen) -> bool:
    return one.words and one.holds == "text" and one.mean_length >= _LONG and one.different * 2 > one.filled > 0


def _find_empty(sketch: Sketch, choice: Choice) -> Iterator[str]:
    """Yield a sentence for each of two columns of texts that is empty in some rows, as an input that nobody needs."""
    for column in choice.texts:
        if count := sum(not cell or not cell.strip() for cell in sketch.table.columns[column].cells):
            yield (
                f"text: {count} rows have no {shorten(column)}, and `ptp ingest` leaves them out; if they need none, "
                "set data.checks.empty_text to off"
            )


def _find_alone(sketch: Sketch, choice: Choice, facts: Facts) -> Iterator[str]:
    """Yield a sentence if labels are those of a single row, as a slip or a line that is no row makes them."""
    alone = sorted(label for label, count in facts.labels.items() if count == 1)
    if not 0 < len(alone) * 2 < len(facts.labels) + 1:
        return
    cells = sketch.table.columns[choice.label].cells
    where = sketch.table.places.describe(cells.index(label) + 1 for label in alone)
    yield (
        f"labels: no other row has the label of {where}, such as {shorten(alone[0])}; correct it if it is a slip, and "
        "delete what is no row"
    )


def _find_several(facts: Facts) -> Iterator[str]:
    """Yield a sentence if labels seem to be lists of labels."""
    for sign in ("|", ";", "#", ","):
        parts = {label: [part.strip() for part in label.split(sign)] for label in facts.labels if sign in label}
        if one := next((label for label in sorted(parts) if all(part in facts.labels for part in parts[label])), None):
            yield f"labels: {one!r} reads like several labels, parted by {sign!r}; {_EACH}"
            return
    if one := next((label for label in sorted(facts.labels) if label.startswith(("[", "{"))), None):
        yield f"labels: {shorten(one)} reads like a list of labels; write one label in each cell, or {_EACH}"
