"""The rows that a prompt answers worst, with their texts: for reports of tasks whose rows are not private. Imports no
torch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptpipeline.records.base import Record
from ptpipeline.records.reports import title_of
from ptpipeline.task.task import Task

if TYPE_CHECKING:
    from ptpipeline.data.rows import Row
    from ptpipeline.evaluation.results import Results

SHOWN = 20
LONGEST = 500  # characters of a text that are shown


class Mistake(Record):
    """A row that is answered wrong: its text, the true label or the target, and the label that was answered, None for
    free text.

    `figure` is the probability of that label, or the free text's value of the task's metric.
    """

    text: str
    wanted: str
    answered: str | None
    figure: float


class Mistakes(Record):
    """The most confident wrong labels, or the worst free texts: those `shown` out of `wrong` of `rows` rows.

    `figure` names what the figure of each is.
    """

    shown: list[Mistake]
    wrong: int
    rows: int
    figure: str


def find_mistakes(task: Task, results: "Results", rows: "Sequence[Row]") -> Mistakes:
    """Return the SHOWN worst answers to these rows; equal ones are ordered by their ids."""
    texts, truth = {row.id: row.text for row in rows}, {row.id: row.label for row in rows}
    if task.generate is not None:
        figures, answered, title = results.columns[task.gate.metric], dict[str, str](), title_of(task.gate.metric)
        wrong = sorted((row for row in results.ids if figures[row] < 1), key=lambda row: (figures[row], row))
    else:
        figures, answered, title = _confidences(results), results.columns["predicted"], "probability"
        wrong = sorted(
            (row for row in results.ids if answered[row] != truth[row]), key=lambda row: (-figures[row], row)
        )
    shown = [
        Mistake(text=_cut(texts[row]), wanted=_cut(truth[row]), answered=answered.get(row), figure=figures[row])
        for row in wrong[:SHOWN]
    ]
    return Mistakes(shown=shown, wrong=len(wrong), rows=len(results.ids), figure=title)


def _confidences(results: "Results") -> dict[str, float]:
    """The probability of every row's answer: 1 if none is stored (an ensemble that votes), 0 if it is NaN."""
    import numpy as np
    from scipy.special import softmax  # takes half a second to import

    table = [[values[row] for row in results.ids] for values in results.log_likelihoods]  # [labels, rows]
    sure = np.nan_to_num(softmax(np.array(table), axis=0).max(axis=0)).tolist() if table else [1.0] * len(results.ids)
    return dict(zip(results.ids, sure, strict=True))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
