"""The stored results of a report's rows: one line a row, without its text, so that any two versions compare later."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ptpipeline.data.parquet import read_table
from ptpipeline.errors import PreconditionFailed
from ptpipeline.foreign import parsing
from ptpipeline.records.reports import Report
from ptpipeline.storage import ObjectStore
from ptpipeline.task.task import Task


class Results(NamedTuple):
    """The stored results of a report's rows: columns by name, each by row id."""

    columns: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, store: ObjectStore, report: Report) -> "Results":
        """Read the stored results of a report; raises NotFound if they are gone."""
        body = store.read(report.rows_key).body
        with parsing(f"{store.url}/{report.rows_key}"):
            table = read_table(body).to_pydict()
            return cls({name: dict(zip(table["id"], values, strict=True)) for name, values in table.items()})

    @property
    def ids(self) -> list[str]:
        """The rows that were measured, in order."""
        return list(self.columns["id"])

    @property
    def log_likelihoods(self) -> list[dict[str, float]]:
        """Each label's log-likelihood by row id; empty for free texts and for an ensemble that votes."""
        return [values for name, values in self.columns.items() if name.startswith("log_likelihood.")]

    def column(self, name: str, rows: Sequence[str]) -> list[Any]:
        """Return the values of one column at these rows."""
        return [self.columns[name][row] for row in rows]

    def row_scores(self, task: Task, rows: Sequence[str]) -> NDArray[np.float64]:
        """Return each row's own score [rows]: 1 for a right label, 0 for a wrong one, or the text's gate metric."""
        if task.generate is not None:
            return np.array(self.column(task.gate.metric, rows), dtype=np.float64)
        answers = zip(self.column("label", rows), self.column("predicted", rows), strict=True)
        return np.array([float(label == predicted) for label, predicted in answers])


def store_results(store: ObjectStore, key: str, columns: dict[str, list[Any]]) -> None:
    """Store columns of results under `key`, and replace what an earlier run left there."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    try:
        store.create(key, buffer.getvalue())
    except PreconditionFailed:  # an earlier run died before its report was kept; the key identifies the results
        store.replace(key, buffer.getvalue(), store.read(key).etag)
