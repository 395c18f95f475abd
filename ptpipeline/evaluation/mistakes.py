"""The rows that a prompt answers worst, with their texts: for reports of tasks whose rows are not private. Imports no
torch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptpipeline.records import Record, title_of
from ptpipeline.task.task import Task

if TYPE_CHECKING:
    from ptpipeline.data.rows import Row
    from ptpipeline.evaluation.compare import Results

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
    """The surest of the wrong labels, or the worst of the free texts, out of so many `wrong` of `rows`; `figure` says
    what theirs is.
    """

    shown: list[Mistake]
    wrong: int
    rows: int
    figure: str


def mistakes(task: Task, results: "Results", rows: "Sequence[Row]") -> Mistakes:
    """The worst SHOWN answers to these rows; of equal ones those whose ids come first."""
    texts, wanted = {row.id: row.text for row in rows}, {row.id: row.label for row in rows}
    if task.generate is not None:
        figures, answered, title = results.columns[task.gate.metric], dict[str, str](), title_of(task.gate.metric)
        wrong = sorted((row for row in results.ids if figures[row] < 1), key=lambda row: (figures[row], row))
    else:
        figures, answered, title = _sureness(results), results.columns["predicted"], "probability"
        wrong = sorted(
            (row for row in results.ids if answered[row] != wanted[row]), key=lambda row: (-figures[row], row)
        )
    shown = [
        Mistake(text=_cut(texts[row]), wanted=_cut(wanted[row]), answered=answered.get(row), figure=figures[row])
        for row in wrong[:SHOWN]
    ]
    return Mistakes(shown=shown, wrong=len(wrong), rows=len(results.ids), figure=title)


def _sureness(results: "Results") -> dict[str, float]:
    """The probability of every row's answer: 1 of an ensemble that votes, which has none, and 0 of one that is no
    number.
    """
    import numpy as np
    from scipy.special import softmax  # takes half a second to import

    table = [results.column(name, results.ids) for name in results.columns if name.startswith("log_likelihood.")]
    sure = np.nan_to_num(softmax(np.array(table), axis=0).max(axis=0)).tolist() if table else [1.0] * len(results.ids)
    return dict(zip(results.ids, sure, strict=True))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
