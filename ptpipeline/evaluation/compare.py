"""Challenger against champion, from the stored results of their test rows."""

import io
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from ptpipeline.evaluation.paired import difference, mean_difference
from ptpipeline.records import PairedDifference, Report
from ptpipeline.storage import ObjectStore
from ptpipeline.task import Task


def compared(store: ObjectStore, task: Task, reports: tuple[Report, Report], rows: Sequence[str]) -> PairedDifference:
    """Challenger minus champion by the task's gate metric on the rows of these ids; `reports` is (challenger's, champion's).

    Of generated texts the rows' own metrics are compared: `bleu` is then the mean of sentence BLEU, not corpus BLEU.
    """
    metric, confidence = task.gate.metric, task.gate.champion.confidence
    if task.generate is not None:
        ours, theirs = (_column(store, report, metric, rows) for report in reports)
        return mean_difference(metric, ours, theirs, confidence)
    ours, theirs = (_column(store, report, "predicted", rows) for report in reports)
    return difference(metric, _column(store, reports[0], "label", rows), ours, theirs, list(task.labels), confidence)


def row_ids(store: ObjectStore, report: Report) -> list[str]:
    """The ids of the test rows that a report measured."""
    return [str(row) for row in _table(store, report, ["id"])["id"]]


def _column(store: ObjectStore, report: Report, name: str, rows: Sequence[str]) -> list[Any]:
    table = _table(store, report, ["id", name])
    values = dict(zip(table["id"], table[name], strict=True))
    return [values[row] for row in rows]


def _table(store: ObjectStore, report: Report, columns: list[str]) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = pq.read_table(io.BytesIO(store.read(report.rows_key).body), columns=columns).to_pydict()
    return table
