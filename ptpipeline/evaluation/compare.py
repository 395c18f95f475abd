"""One prompt against another, from the stored results of their test rows: as a whole, and slice by slice."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ptpipeline.evaluation.paired import Hypothesis, Values, chance_of_harm, difference, mean_difference
from ptpipeline.evaluation.results import Results
from ptpipeline.records.reports import PairedDifference, SliceDifference
from ptpipeline.task.task import Task

LENGTHS = 4  # slices of about equal size by the number of tokens


class Pair(NamedTuple):
    """The results of a challenger and of what it is compared with, and the rows to compare on."""

    ours: Results
    theirs: Results
    rows: Sequence[str]


def compare_pair(task: Task, pair: Pair, hypothesis: Hypothesis) -> PairedDifference:
    """Return challenger minus the other by the hypothesis' metric.

    For generated texts the rows' own metrics are compared: `bleu` and `chrf` are then means over sentences, not the
    corpus metrics.
    """
    if task.generate is not None:
        ours, theirs = (side.column(hypothesis.metric, pair.rows) for side in (pair.ours, pair.theirs))
        return mean_difference(hypothesis, ours, theirs)
    ours, theirs = (side.column("predicted", pair.rows) for side in (pair.ours, pair.theirs))
    return difference(hypothesis, pair.ours.column("label", pair.rows), ours, theirs, list(task.labels))


def compare_slices(task: Task, pair: Pair, min_rows: int) -> list[SliceDifference]:
    """Return the difference on every slice of at least `min_rows` rows: by label, by length, and by the task's columns.

    Labels are compared by the share of right answers, whatever the gate's metric: within a slice a row is right or
    wrong.
    """
    ours, theirs = (side.row_scores(task, pair.rows) for side in (pair.ours, pair.theirs))  # [rows] each
    return [
        SliceDifference(
            name=name,
            rows=len(places),
            difference=float((ours[places] - theirs[places]).mean()),
            p_harm=chance_of_harm(ours[places], theirs[places]),
        )
        for name, places in _slices(task, pair).items()
        if len(places) >= max(min_rows, 2)
    ]


def _slices(task: Task, pair: Pair) -> dict[str, list[int]]:
    """The places in `pair.rows` of every slice, by the slice's name."""
    places: dict[str, list[int]] = defaultdict(list)
    if task.generate is None:
        for place, label in enumerate(pair.ours.column("label", pair.rows)):
            places[f"label {label}"].append(place)
    if "tokens" in pair.ours.columns:
        tokens = np.array(pair.ours.column("tokens", pair.rows))
        edges = np.unique(np.quantile(tokens, np.linspace(0, 1, LENGTHS + 1)[1:-1], method="nearest"))
        for place, part in enumerate(np.searchsorted(edges, tokens)):
            places[_length_name(edges, int(part))].append(place)
    for name in pair.ours.columns:
        if name.startswith("slice."):
            for place, value in enumerate(pair.ours.column(name, pair.rows)):
                places[f"{name.removeprefix('slice.')} {value}"].append(place)
    return places


def _length_name(edges: Values, part: int) -> str:
    if part == len(edges):
        return f"over {edges[-1]:.0f} tokens"
    return f"{edges[part - 1] + 1:.0f} to {edges[part]:.0f} tokens" if part else f"up to {edges[0]:.0f} tokens"
