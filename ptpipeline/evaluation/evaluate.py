"""A stored prompt measured on the test split, from its bytes through the serving path, beside its baselines."""

import io
import time
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ptpipeline.data.rows import Row
from ptpipeline.data.snapshot import load_split
from ptpipeline.errors import PreconditionFailed
from ptpipeline.evaluation.generated import generated
from ptpipeline.evaluation.key import evaluation_key
from ptpipeline.evaluation.measurement import Measurement
from ptpipeline.evaluation.ranked import ranked
from ptpipeline.prompts.artifact import Artifact, read_members
from ptpipeline.records import Report, Snapshot
from ptpipeline.serving.engine import Engine
from ptpipeline.storage import ObjectStore


def evaluate(engine: Engine, artifact: Artifact, snapshot: Snapshot, store: ObjectStore) -> Report:
    """The report of a stored prompt over the snapshot's test rows; the rows' results are stored beside it.

    Raises ContextError where a test text does not fit, and what Engine.load raises.
    """
    started = time.perf_counter()
    rows = load_split(store, snapshot, "test")
    engine.load(artifact, read_members(store, artifact))
    measured = _measured(engine, artifact, rows, snapshot, store)
    key = evaluation_key(artifact.digest, snapshot.test.digest, str(engine.base.dtype))
    rows_key = f"reports/{artifact.manifest.task}/{key}/rows.parquet"
    _store_rows(store, rows_key, {"id": [row.id for row in rows], **measured.columns})
    return Report(
        task=artifact.manifest.task,
        digest=artifact.digest,
        evaluation_key=key,
        snapshot=snapshot.digest,
        test_digest=snapshot.test.digest,
        rows=len(rows),
        rows_key=rows_key,
        prompt=measured.prompt,
        zero_shot=measured.zero_shot,
        majority=measured.majority,
        interval=measured.interval,
        compute_dtype=str(engine.base.dtype).removeprefix("torch."),
        seconds=round(time.perf_counter() - started, 2),
    )


def _measured(engine: Engine, artifact: Artifact, rows: Sequence[Row], snapshot: Snapshot, store: ObjectStore) -> Measurement:
    if artifact.manifest.generate is None and snapshot.train.labels:
        return ranked(engine, artifact, rows, snapshot.train.labels)
    targets = Counter(row.label for row in load_split(store, snapshot, "train"))  # snapshots of free text count none
    return generated(engine, artifact, rows, targets) if artifact.manifest.generate else ranked(engine, artifact, rows, targets)


def _store_rows(store: ObjectStore, key: str, columns: dict[str, list[object]]) -> None:
    """One line per test row, without its text, so that any two versions compare later without a rerun."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    try:
        store.create(key, buffer.getvalue())
    except PreconditionFailed:  # an earlier run that died before its report was kept: the key binds the results
        store.replace(key, buffer.getvalue(), store.read(key).etag)
