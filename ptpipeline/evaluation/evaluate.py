"""A stored prompt measured on the test split, from its bytes through the serving path, beside its baselines."""

import io
import time
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from ptpipeline.data.rows import Row
from ptpipeline.data.snapshot import load_split
from ptpipeline.data.tokens import encode_text
from ptpipeline.errors import PreconditionFailed
from ptpipeline.evaluation.key import evaluation_key
from ptpipeline.evaluation.metrics import majority, scores
from ptpipeline.evaluation.paired import RESAMPLED, interval
from ptpipeline.prompts.artifact import Artifact, read_members
from ptpipeline.prompts.placement import extra_tokens
from ptpipeline.records import Report, Scores, Snapshot
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.ranking import Query, rank
from ptpipeline.storage import ObjectStore


class Measured(NamedTuple):
    """Log-likelihoods of one set of predictions: per row a tensor [labels]."""

    names: tuple[str, ...]
    log_likelihoods: list[Tensor]

    @property
    def predicted(self) -> list[str]:
        """The most likely label of each row."""
        return [self.names[int(row.argmax())] for row in self.log_likelihoods]


def evaluate(engine: Engine, artifact: Artifact, snapshot: Snapshot, store: ObjectStore) -> Report:
    """The report of a stored prompt over the snapshot's test rows; the rows' results are stored beside it.

    Raises ContextError where a test text does not fit, and what Engine.load raises.
    """
    started = time.perf_counter()
    rows = load_split(store, snapshot, "test")
    engine.load(artifact, read_members(store, artifact))
    prompt, zero_shot = _prompted(engine, artifact, rows), _unprompted(engine, artifact, rows)
    truth, names = [row.label for row in rows], prompt.names
    key = evaluation_key(artifact.digest, snapshot.test.digest, str(engine.base.dtype))
    rows_key = f"reports/{artifact.manifest.task}/{key}/rows.parquet"
    _store_rows(store, rows_key, rows, prompt, zero_shot)
    return Report(
        task=artifact.manifest.task,
        digest=artifact.digest,
        evaluation_key=key,
        snapshot=snapshot.digest,
        test_digest=snapshot.test.digest,
        rows=len(rows),
        rows_key=rows_key,
        prompt=scores(truth, prompt.predicted, names),
        zero_shot=scores(truth, zero_shot.predicted, names),
        majority=_majority(snapshot, truth, names),
        interval={metric: interval(metric, truth, prompt.predicted, names) for metric in RESAMPLED},
        compute_dtype=str(engine.base.dtype).removeprefix("torch."),
        seconds=round(time.perf_counter() - started, 2),
    )


def _prompted(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> Measured:
    loaded = engine.load(artifact)
    return Measured(loaded.labels.names, engine.log_likelihoods([Question(artifact.digest, row.text) for row in rows]))


def _unprompted(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> Measured:
    """Zero-shot: the same template and labels on the bare base model."""
    manifest, labels = artifact.manifest, engine.load(artifact).labels
    what = f"test rows of {manifest.task}"
    limit = manifest.max_input_tokens + extra_tokens(manifest.placement)
    queries = [Query(encode_text(manifest.template, row.text, limit, what, engine.base.encode), labels, 0) for row in rows]
    return Measured(labels.names, rank(engine.base, None, queries))


def _majority(snapshot: Snapshot, truth: Sequence[str], names: Sequence[str]) -> Scores:
    return scores(truth, [majority(snapshot.train.labels)] * len(truth), names)


def _store_rows(store: ObjectStore, key: str, rows: Sequence[Row], prompt: Measured, zero_shot: Measured) -> None:
    """One line per test row, without its text, so that any two versions compare later without a rerun."""
    columns = {
        "id": [row.id for row in rows],
        "label": [row.label for row in rows],
        "predicted": prompt.predicted,
        "zero_shot": zero_shot.predicted,
    } | {f"log_likelihood.{name}": [float(row[i]) for row in prompt.log_likelihoods] for i, name in enumerate(prompt.names)}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    try:
        store.create(key, buffer.getvalue())
    except PreconditionFailed:  # an earlier run that died before its report was kept: the key binds the results
        store.replace(key, buffer.getvalue(), store.read(key).etag)


def predictions(store: ObjectStore, report: Report) -> dict[str, tuple[str, str]]:
    """Row id -> (label, predicted) of a report, as stored."""
    table = pq.read_table(io.BytesIO(store.read(report.rows_key).body), columns=["id", "label", "predicted"])
    return {row["id"]: (row["label"], row["predicted"]) for row in table.to_pylist()}
