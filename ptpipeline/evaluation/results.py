"""The stored results of a report's rows: one line a row, without its text, so that any two versions compare later.

Decisions are made on them, and whoever may write to the store can alter them: so a report states the hash of its
results, and nothing else reads or writes them.
"""

import hashlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ptpipeline.data.parquet import read_table
from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed
from ptpipeline.foreign import parsing
from ptpipeline.records.reports import Report
from ptpipeline.storage import ObjectStore
from ptpipeline.task.task import Task


class Results(NamedTuple):
    """The stored results of a report's rows: columns by name, each by row id."""

    columns: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, store: ObjectStore, report: Report) -> "Results":
        """Read the stored results of a report; raises what `read_results` raises."""
        body = read_results(store, report)
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

    def label_scores(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Return by row id the score of each of these labels, in their order."""
        return {row: [self.columns[f"log_likelihood.{name}"][row] for name in names] for row in self.ids}

    def column(self, name: str, rows: Sequence[str]) -> list[Any]:
        """Return the values of one column at these rows."""
        return [self.columns[name][row] for row in rows]

    def row_scores(self, task: Task, rows: Sequence[str]) -> NDArray[np.float64]:
        """Return each row's own score [rows]: 1 for a right label, 0 for a wrong one, or the text's gate metric."""
        if task.generate is not None:
            return np.array(self.column(task.gate.metric, rows), dtype=np.float64)
        answers = zip(self.column("label", rows), self.column("predicted", rows), strict=True)
        return np.array([float(label == predicted) for label, predicted in answers])


def store_results(store: ObjectStore, key: str, columns: dict[str, list[Any]]) -> str:
    """Store columns of results under `key`, in place of what was there; return the sha256 that the report states."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    body = buffer.getvalue()
    try:
        store.create(key, body)
    except PreconditionFailed:  # an earlier run died before its report was kept, or they were altered
        store.replace(key, body, store.read(key).etag)
    return hashlib.sha256(body).hexdigest()


def read_results(store: ObjectStore, report: Report) -> bytes:
    """Return the bytes of a report's results.

    Raises NotFound if they are gone, ArtifactError if they are not those that the report states, or it states none.
    """
    where = f"{store.url}/{report.rows_key}"
    if not report.rows_sha256:
        raise ArtifactError(f"{where}: an older ptpipeline measured this and did not note which results are its own")
    body = store.read(report.rows_key).body
    actual = hashlib.sha256(body).hexdigest()
    if actual != report.rows_sha256:
        raise ArtifactError(
            f"{where}: {len(body)} bytes hash to {actual[:12]}, their report states {report.rows_sha256[:12]}; the "
            "results were altered"
        )
    return body


def find_flaw(store: ObjectStore, report: Report) -> str | None:
    """Say why nothing may be decided on the stored results of a report; None if they are its own."""
    try:
        read_results(store, report)
    except (ArtifactError, NotFound) as error:
        return str(error)
    return None
