"""One prompt against another, from the stored results of their test rows: as a whole, and part by part."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ptpipeline.data.parquet import table_in
from ptpipeline.evaluation.paired import Asked, Values, chance_of_harm, difference, mean_difference
from ptpipeline.records import PairedDifference, Report, SliceDifference
from ptpipeline.storage import ObjectStore
from ptpipeline.task.task import Task

LENGTHS = 4  # parts of about equal size by the number of tokens


class Results(NamedTuple):
    """What a report stored of its rows: columns by name, each by row id."""

    columns: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, store: ObjectStore, report: Report) -> "Results":
        """The stored results of a report; NotFound where they are gone."""
        table = table_in(store.read(report.rows_key).body).to_pydict()
        return cls({name: dict(zip(table["id"], values, strict=True)) for name, values in table.items()})

    @property
    def ids(self) -> list[str]:
        """The rows that were measured, in order."""
        return list(self.columns["id"])

    def column(self, name: str, rows: Sequence[str]) -> list[Any]:
        """That column at these rows."""
        return [self.columns[name][row] for row in rows]


class Pair(NamedTuple):
    """The results of a challenger and of what it is compared with, and the rows to compare on."""

    ours: Results
    theirs: Results
    rows: Sequence[str]


def compared(task: Task, pair: Pair, asked: Asked) -> PairedDifference:
    """Challenger minus the other by the metric that is asked.

    Of generated texts the rows' own metrics are compared: `bleu` and `chrf` are then the means of the sentences', not
    the corpus'.
    """
    if task.generate is not None:
        return mean_difference(asked, *(side.column(asked.metric, pair.rows) for side in (pair.ours, pair.theirs)))
    ours, theirs = (side.column("predicted", pair.rows) for side in (pair.ours, pair.theirs))
    return difference(asked, pair.ours.column("label", pair.rows), ours, theirs, list(task.labels))


def sliced(task: Task, pair: Pair, min_rows: int) -> list[SliceDifference]:
    """The difference on every part of at least `min_rows` rows: by label, by length, and by the columns that the task
    names.

    Of labels it is the share of right answers that is compared, whatever the gate's metric: within a part a row is
    right or wrong.
    """
    ours, theirs = (_row_values(task, side, pair.rows) for side in (pair.ours, pair.theirs))
    found = []
    for name, places in _parts(task, pair).items():
        if len(places) >= max(min_rows, 2):
            a, b = ours[places], theirs[places]
            found.append(
                SliceDifference(
                    name=name, rows=len(places), difference=float((a - b).mean()), p_harm=chance_of_harm(a, b)
                )
            )
    return found


def _row_values(task: Task, side: Results, rows: Sequence[str]) -> Values:
    if task.generate is not None:
        return np.array(side.column(task.gate.metric, rows), dtype=np.float64)
    answers = zip(side.column("label", rows), side.column("predicted", rows), strict=True)
    return np.array([float(label == predicted) for label, predicted in answers])


def _parts(task: Task, pair: Pair) -> dict[str, list[int]]:
    """Places in `rows` of every part, by the part's name."""
    parts: dict[str, list[int]] = defaultdict(list)
    if task.generate is None:
        for place, label in enumerate(pair.ours.column("label", pair.rows)):
            parts[f"label {label}"].append(place)
    if "tokens" in pair.ours.columns:
        tokens = np.array(pair.ours.column("tokens", pair.rows))
        edges = np.unique(np.quantile(tokens, np.linspace(0, 1, LENGTHS + 1)[1:-1], method="nearest"))
        for place, part in enumerate(np.searchsorted(edges, tokens)):
            parts[_length_name(edges, int(part))].append(place)
    for name in pair.ours.columns:
        if name.startswith("slice."):
            for place, value in enumerate(pair.ours.column(name, pair.rows)):
                parts[f"{name.removeprefix('slice.')} {value}"].append(place)
    return parts


def _length_name(edges: Values, part: int) -> str:
    if part == len(edges):
        return f"over {edges[-1]:.0f} tokens" if len(edges) else "all lengths"
    return f"{edges[part - 1] + 1:.0f} to {edges[part]:.0f} tokens" if part else f"up to {edges[0]:.0f} tokens"
