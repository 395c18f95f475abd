"""What was measured on the rows of a split, by label ranking or by generation, and the file that keeps it row
by row.
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ptpipeline.data.rows import Row
from ptpipeline.data.snapshot import load_split
from ptpipeline.errors import PreconditionFailed
from ptpipeline.evaluation.key import rows_identity
from ptpipeline.records import Scores, Snapshot, Split, TextScores
from ptpipeline.storage import ObjectStore


class Measurement(NamedTuple):
    """Scores of one set of answers, their intervals over the rows, and columns of results per row."""

    scores: Scores | TextScores
    interval: dict[str, tuple[float, float]]
    columns: dict[str, list[Any]]


class Sample(NamedTuple):
    """The rows of a snapshot's split in the order in which they are measured, and which of the snapshot's slices are
    kept of them.

    That order is the one of their ids, whatever the snapshot's: the same rows always run in the same batches.
    """

    snapshot: Snapshot
    split: Split
    rows: list[Row]
    slices: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: ObjectStore, snapshot: Snapshot, split: Split, slices: Sequence[str] = ()) -> "Sample":
        """The stored rows; ArtifactError where they are missing or altered."""
        return cls(snapshot, split, sorted(load_split(store, snapshot, split), key=lambda row: row.id), tuple(slices))

    @property
    def digest(self) -> str:
        """Identity of the rows."""
        return self.snapshot.split(self.split).digest

    @property
    def identity(self) -> str:
        """The same with their slices, as evaluation keys have it."""
        return rows_identity(self.snapshot.split(self.split))

    @property
    def answers(self) -> list[str]:
        """The true label, or the target, of every row."""
        return [row.label for row in self.rows]

    def columns(self, tokens: Sequence[int]) -> dict[str, list[Any]]:
        """What every file of results says of the rows: id, tokens of the rendered text, and slices."""
        kept = [(name, index) for index, name in enumerate(self.snapshot.slices) if name in self.slices]
        parts = {f"slice.{name}": [row.slices[index] for row in self.rows] for name, index in kept}
        return {"id": [row.id for row in self.rows], "tokens": list(tokens), **parts}


def store_rows(store: ObjectStore, key: str, columns: dict[str, list[Any]]) -> None:
    """One line per row, without its text, so that any two versions compare later without a rerun."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    try:
        store.create(key, buffer.getvalue())
    except PreconditionFailed:  # an earlier run that died before its report was kept: the key binds the results
        store.replace(key, buffer.getvalue(), store.read(key).etag)
