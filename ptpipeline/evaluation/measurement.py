"""What is measured on the rows of a split: the rows themselves, and the scores of one set of answers to them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ptpipeline.data.rows import Row
from ptpipeline.data.snapshot import load_split
from ptpipeline.evaluation.key import rows_identity
from ptpipeline.records.data import Snapshot, Split
from ptpipeline.records.reports import Scores, TextScores
from ptpipeline.storage import ObjectStore


class Measurement(NamedTuple):
    """Scores of one set of answers, their intervals over the rows, and columns of results per row.

    `texts` are the answers if they were generated; they are never stored.
    """

    scores: Scores | TextScores
    interval: dict[str, tuple[float, float]]
    columns: dict[str, list[Any]]
    texts: Sequence[str] = ()


class Sample(NamedTuple):
    """The rows of a snapshot's split in the order in which they are measured, and the slices that results repeat.

    The rows are ordered by their ids, whatever the snapshot's order: the same rows always run in the same batches.
    """

    snapshot: Snapshot
    split: Split
    rows: list[Row]
    slices: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: ObjectStore, snapshot: Snapshot, split: Split, slices: Sequence[str] = ()) -> "Sample":
        """Load the stored rows of a split; raises ArtifactError if they are missing or altered."""
        return cls(snapshot, split, sorted(load_split(store, snapshot, split), key=lambda row: row.id), tuple(slices))

    @property
    def digest(self) -> str:
        """Identity of the rows."""
        return self.snapshot.split(self.split).digest

    @property
    def identity(self) -> str:
        """Identity of the rows and their slices, as evaluation keys hold it."""
        return rows_identity(self.snapshot.split(self.split))

    @property
    def answers(self) -> list[str]:
        """The true label, or the target, of every row."""
        return [row.label for row in self.rows]

    def columns(self, tokens: Sequence[int]) -> dict[str, list[Any]]:
        """Return the columns that every file of results has: id, tokens of the rendered text, and slices."""
        kept = [(name, index) for index, name in enumerate(self.snapshot.slices) if name in self.slices]
        parts = {f"slice.{name}": [row.slices[index] for row in self.rows] for name, index in kept}
        return {"id": [row.id for row in self.rows], "tokens": list(tokens), **parts}
