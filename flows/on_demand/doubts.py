"""What `ptp init` finds odd in a file that it can read: notes for the person who lets the drafted task run."""

from collections.abc import Iterator
from itertools import combinations

from flows.on_demand.draft import Facts, Sketch
from ptpipeline.data.near import normalise
from ptpipeline.data.table import is_no_name
from ptpipeline.data.validation import MISSING
from ptpipeline.foreign import shorten


def find_doubts(sketch: Sketch, facts: Facts) -> Iterator[str]:
    """Yield what a person should look at before the task runs, in a sentence each."""
    seen = {label: normalise(label) for label in sorted(facts.labels)}
    for one, two in combinations(seen, 2):
        if seen[one] == seen[two]:
            how = "differ in case alone" if one.casefold() == two.casefold() else "look alike"
            yield f"labels: {one!r} and {shorten(two)} {how}; if they are one, give it one spelling"
    for label in sorted(facts.labels.keys() & MISSING):
        yield f"labels: {label!r} reads like a missing value; if these rows have no label, leave the cell empty"
    if facts.broken:
        yield f"text: {facts.broken} are not UTF-8, and `ptp ingest` leaves their rows out; save the file as UTF-8"
    if sketch.source.format in ("csv", "tsv") and any(is_no_name(one.column) for one in sketch.seen):
        yield (
            "source: the first line was taken for the names of columns; if it is a row, put a line of names in front"
        )
