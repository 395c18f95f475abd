"""A stored prompt measured on the rows of a split, from its bytes through the serving path, beside its baselines."""

import time

from ptpipeline.data.snapshot import load_split
from ptpipeline.evaluation.answers import measure_generated, measure_rankings
from ptpipeline.evaluation.baselines import Bare, Setup, measure_baselines
from ptpipeline.evaluation.key import evaluation_key
from ptpipeline.evaluation.measurement import Measurement, Sample
from ptpipeline.evaluation.results import store_results
from ptpipeline.progress import phase
from ptpipeline.prompts.artifact import Artifact, read_ensemble
from ptpipeline.records.data import Snapshot
from ptpipeline.records.reports import Report
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import results_key

PLAIN = Setup()


def evaluate(
    engine: Engine, artifact: Artifact, snapshot: Snapshot, store: ObjectStore, setup: Setup = PLAIN
) -> Report:
    """Return the report of a stored prompt over the rows of the setup's split, and store the rows' results beside it.

    Raises ContextError if a text does not fit, and what Engine.load raises.
    """
    started = time.perf_counter()
    manifest, sample = artifact.manifest, Sample.of(store, snapshot, setup.split, setup.slices)
    engine.load(artifact, read_ensemble(store, artifact))
    with phase("prompt"):
        measured = measure_prompt(engine, artifact, sample)
    if measured.texts:
        setup.keep({row.id: text for row, text in zip(sample.rows, measured.texts, strict=True)})
    bare = Bare.of(engine.base, manifest, sample, load_split(store, snapshot, "train"))
    beside = measure_baselines(bare, store, setup)
    key = evaluation_key(artifact.digest, sample.identity, str(engine.base.dtype), setup.hard_prompt)
    rows_key = results_key(manifest.task, key)
    sha256 = store_results(store, rows_key, sample.columns([len(ids) for ids in bare.encoded]) | measured.columns)
    return Report(
        task=manifest.task,
        digest=artifact.digest,
        evaluation_key=key,
        snapshot=snapshot.digest,
        test_digest=sample.digest,
        rows=len(sample.rows),
        rows_key=rows_key,
        prompt=measured.scores,
        zero_shot=beside["zero_shot"].prompt,
        majority=beside["majority"].prompt,
        interval=measured.interval,
        compute_dtype=str(engine.base.dtype).removeprefix("torch."),
        seconds=round(time.perf_counter() - started, 2),
        hard_prompt=beside["hard_prompt"].prompt if "hard_prompt" in beside else None,
        baselines={kind: report.evaluation_key for kind, report in beside.items()},
        split=setup.split,
        rows_sha256=sha256,
    )


def measure_prompt(engine: Engine, artifact: Artifact, sample: Sample) -> Measurement:
    """Measure a prompt that the engine has loaded on every row of a sample.

    Raises ContextError if a text does not fit.
    """
    digest = artifact.digest  # once: it hashes the manifest
    questions = [Question(digest, row.fields) for row in sample.rows]
    if artifact.manifest.generate:
        return measure_generated(sample.answers, engine.generate(questions))
    return measure_rankings(sample.answers, list(artifact.manifest.labels), engine.score_labels(questions))
