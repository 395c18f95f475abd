"""Versions measured because a person asks: one on a file of rows, or two against each other.

Neither is a gate, and neither spends a look.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flows.stages.compare import SeenRows, compare, find_mismatch
from flows.stages.context import Context, ingest
from flows.stages.measure import measure
from ptpipeline.errors import DataError, NotFound
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_ensemble
from ptpipeline.records.base import Record, digest_of
from ptpipeline.records.data import Snapshot, SplitInfo
from ptpipeline.records.reports import PairedDifference, Scores, TextScores
from ptpipeline.task.data import Source, SplitSpec
from ptpipeline.task.folder import find_task
from ptpipeline.task.task import Task
from registry.ledger.tombstone import collected_sentence

if TYPE_CHECKING:
    from ptpipeline.data.rows import CheckedRows
    from ptpipeline.evaluation.compare import Pair
    from ptpipeline.evaluation.measurement import Measurement, Sample

FORMATS = ("csv", "tsv", "jsonl", "parquet")
NO_GATE = (
    "no look was spent on this: the gate may not use a p seen here, because nobody counts how often rows are looked "
    "at this way"
)


class FileReport(Record):
    """A version on the rows of a file: scores and 95% intervals of the prompt and of each baseline, by name.

    `left_out` counts the rows that the checks left out, by check. `trained_on` counts the rows that the version, or
    what it descends from, was trained on: they are measured, and flatter it.
    """

    task: str
    version: int
    file: str
    rows: int
    left_out: dict[str, int]
    trained_on: int
    scores: dict[str, Scores | TextScores]
    interval: dict[str, dict[str, tuple[float, float]]]
    compute_dtype: str


class Changed(Record):
    """A row that the two versions answer differently: predicted labels, or the gate's metric of generated texts.

    `text` is None unless it was asked for.
    """

    id: str
    label: str | None
    before: str | float
    after: str | float
    text: str | None = None


class Tally(Record):
    """Rows of a true label, or all rows if answers are texts: won, lost, and wrong both before and after otherwise."""

    label: str
    rows: int
    won: int
    lost: int
    wrong_otherwise: int


class Diff(Record):
    """Version `after` against version `before` on the current test rows that neither was trained on.

    `better` tests whether `after` is better, `worse` whether `before` is.
    """

    task: str
    before: int
    after: int
    snapshot: str
    better: PairedDifference
    worse: PairedDifference
    tallies: list[Tally]
    changed: list[Changed]
    note: str = NO_GATE


class VersionRef(NamedTuple):
    """A version by its task and number."""

    task: str
    number: int

    def __str__(self) -> str:
        return f"{self.task}@{self.number}"


class _Version(NamedTuple):
    ref: VersionRef
    task: Task
    artifact: Artifact

    @property
    def base_model(self) -> str:
        return self.artifact.manifest.base_model.name

    @property
    def digest(self) -> str:
        return self.artifact.digest


def _open(context: Context, ref: VersionRef) -> _Version:
    task = find_task(context.settings.tasks, ref.task)
    version = context.registry.ledger.version(*ref)
    if version.collected:
        raise NotFound(collected_sentence(ref.task, version.digest))
    return _Version(ref, task, read_artifact(context.registry.store, ref.task, version.digest))


def _check_answers(version: _Version) -> None:
    """Raise DataError if the version answers other labels than the task has now."""
    reason = find_mismatch(version.task, version.artifact.manifest)
    if reason:
        raise DataError(
            f"{version.ref} cannot be measured on the rows of task {version.ref.task}: {reason}; name a version that "
            "was trained since"
        )


# ---------------------------------------------------------------- on a file


def measure_file(context: Context, ref: VersionRef, path: Path, form: str | None = None) -> FileReport:
    """Measure a version on the rows of a file with the task's columns; nothing is kept.

    Raises DataError for a file that ingest would refuse, is not UTF-8 or has fewer than two rows, ContextError for
    a row that does not fit, NotFound if the version, or the rows that it was trained on, are gone.
    """
    version = _open(context, ref)
    task = _replace_source(version.task, path, form)
    _check_answers(version)
    checked = _read_file(task, path)
    sample = _build_sample(context, version, checked, path)
    scores = _score(context, version, sample)
    seen = SeenRows(context.registry, ref.task, version.digest)
    return FileReport(
        task=ref.task,
        version=ref.number,
        file=str(path),
        rows=len(sample.rows),
        left_out={
            check.name: check.count for check in checked.checks if check.count and check.outcome in ("warned", "ok")
        },
        trained_on=sum(row.id in seen for row in sample.rows),
        scores=scores.scores,
        interval=scores.interval,
        compute_dtype=str(context.engine(version.base_model).base.dtype).removeprefix("torch."),
    )


def _build_sample(context: Context, version: _Version, checked: "CheckedRows", path: Path) -> "Sample":
    """Return the file's rows as a test split, in an order that depends on the rows alone; each has to fit."""
    from ptpipeline.data.snapshot import identify_rows
    from ptpipeline.data.tokens import encode_text
    from ptpipeline.evaluation.measurement import Sample
    from ptpipeline.prompts.placement import build_text_encoder

    manifest = version.artifact.manifest
    encode = build_text_encoder(context.engine(version.base_model).base, manifest.placement)
    for row in checked.rows:  # the engine would number them as it gets them
        encode_text(manifest.template, row.text, manifest.max_input_tokens, f"{path}: row {row.number}", encode)
    rows = sorted(identify_rows(checked.rows), key=lambda row: row.id)
    if len(rows) < 2:
        raise DataError(f"{path}: {len(rows)} row is left after the checks; an interval needs two")
    test = SplitInfo(rows=len(rows), labels={}, digest=digest_of([[*row[:3]] for row in rows]))
    snapshot = context.snapshot(version.ref.task, manifest.snapshot).model_copy(update={"test": test})
    return Sample(snapshot, "test", rows)


class _Scored(NamedTuple):
    scores: dict[str, Scores | TextScores]
    interval: dict[str, dict[str, tuple[float, float]]]


def _score(context: Context, version: _Version, sample: "Sample") -> _Scored:
    """Score the prompt and the baselines, which learn from the rows that the version was trained on."""
    from ptpipeline.data.snapshot import load_split
    from ptpipeline.evaluation.baselines import Bare, Setup, measure_baselines
    from ptpipeline.evaluation.evaluate import measure_prompt
    from ptpipeline.prompts.signature import open_prompts

    store, engine = context.registry.store, context.engine(version.base_model)
    engine.load(version.artifact, read_ensemble(store, version.artifact))
    prompt: Measurement = measure_prompt(engine, version.artifact, sample)
    train = load_split(store, sample.snapshot, "train")
    bare = Bare.of(engine.base, version.artifact.manifest, sample, train)
    with tempfile.TemporaryDirectory(prefix="ptp-evaluate-") as folder:  # results by row go nowhere else
        own_store = open_prompts(context.settings.model_copy(update={"store": f"file://{folder}"}))
        reports = measure_baselines(bare, own_store, Setup(hard_prompt=version.task.hard_prompt))
    return _Scored(
        {"prompt": prompt.scores} | {kind: report.prompt for kind, report in reports.items()},
        {"prompt": prompt.interval} | {kind: report.interval for kind, report in reports.items()},
    )


def _replace_source(task: Task, path: Path, form: str | None) -> Task:
    """Return the task with the file as its source; all rows are measured, so checks of splits are off.

    Raises NotFound if there is no such file, DataError if its format is not known.
    """
    if not path.is_file():
        raise NotFound(
            f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; name a file of rows with the "
            f"columns of task {task.name}"
        )
    form = form or path.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise DataError(
            f"{path}: its name does not tell its format; give --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        )
    source = Source.model_validate({"path": str(path.resolve()), "format": form})
    checks = task.data.checks.model_copy(
        update={"split_overlap": "off", "near_duplicate": "off", "rows_per_label": "off"}
    )
    return task.model_copy(
        update={
            "data": task.data.model_copy(
                update={"source": source, "split": SplitSpec(), "slices": [], "checks": checks}
            )
        }
    )


def _read_file(task: Task, path: Path) -> "CheckedRows":
    """Return the rows that pass the checks of ingest; DataError for a text file with a line that is not UTF-8."""
    from ptpipeline.data.rows import check_rows
    from ptpipeline.data.sources import read_rows

    if task.data.source.format != "parquet":
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    raise DataError(f"{path}: line {number} is not UTF-8; save the file as UTF-8") from None
    with tempfile.TemporaryDirectory(prefix="ptp-evaluate-") as folder:
        return check_rows(task, read_rows(task, Path(folder)))


# ---------------------------------------------------------------- two versions


def diff(context: Context, before: VersionRef, after: VersionRef, texts: bool = False) -> Diff:
    """Compare the second version with the first, row by row, from stored reports or measured now.

    Raises NotFound if they are of two tasks or gone, DataError if they answer other labels than the task has now, or
    fewer than two rows compare.
    """
    from ptpipeline.evaluation.compare import Pair

    if before.task != after.task:
        raise NotFound(f"{before} and {after} are versions of two tasks; `ptp diff` compares two of one task")
    versions = [_open(context, ref) for ref in (before, after)]
    for version in versions:
        _check_answers(version)
    task = versions[0].task
    snapshot = ingest(context, task)
    pair = _pair_up(context, task, snapshot, versions)
    better, worse = compare(task, pair, 0.0), compare(task, Pair(pair.theirs, pair.ours, pair.rows), 0.0)
    if isinstance(better, str) or isinstance(worse, str):
        raise DataError(f"{before} and {after} do not compare: {better}")
    changed = _list_changed(task, pair)
    return Diff(
        task=task.name,
        before=before.number,
        after=after.number,
        snapshot=snapshot.digest,
        better=better,
        worse=worse,
        tallies=_count_answers(task, pair),
        changed=_add_texts(context, snapshot, changed) if texts else changed,
    )


def _pair_up(context: Context, task: Task, snapshot: Snapshot, versions: Sequence[_Version]) -> "Pair":
    """Pair the second version with the first on the current test rows that neither learnt from."""
    from ptpipeline.evaluation.compare import Pair
    from ptpipeline.evaluation.results import Results

    store = context.registry.store
    before, after = (Results.of(store, measure(context, task, version.digest, snapshot)) for version in versions)
    rows = before.ids
    for version in versions:
        rows = SeenRows(context.registry, task.name, version.digest).select_unseen(rows)
    return Pair(after, before, rows)


def _add_texts(context: Context, snapshot: Snapshot, changed: list[Changed]) -> list[Changed]:
    from ptpipeline.data.snapshot import load_split

    texts = {row.id: row.text for row in load_split(context.registry.store, snapshot, "test")}
    return [row.model_copy(update={"text": texts[row.id]}) for row in changed]


def _list_changed(task: Task, pair: "Pair") -> list[Changed]:
    column = task.gate.metric if task.generate else "predicted"
    labels = pair.theirs.column("label", pair.rows) if not task.generate else [None] * len(pair.rows)
    answers = (side.column(column, pair.rows) for side in (pair.theirs, pair.ours))
    return [
        Changed(id=row, label=label, before=before, after=after)
        for row, label, before, after in zip(pair.rows, labels, *answers, strict=True)
        if before != after
    ]


def _count_answers(task: Task, pair: "Pair") -> list[Tally]:
    """Count per true label; a generated text is won if its metric is higher."""
    if task.generate:
        metric = task.gate.metric
        scores = zip(pair.theirs.column(metric, pair.rows), pair.ours.column(metric, pair.rows), strict=True)
        moved = [new - old for old, new in scores]
        won, lost = sum(by > 0 for by in moved), sum(by < 0 for by in moved)
        return [Tally(label="", rows=len(moved), won=won, lost=lost, wrong_otherwise=0)]
    truth = pair.theirs.column("label", pair.rows)
    before, after = (side.column("predicted", pair.rows) for side in (pair.theirs, pair.ours))
    tallies = []
    for label in task.labels:
        pairs = [(old, new) for old, new, true in zip(before, after, truth, strict=True) if true == label]
        won, lost = sum(old != label == new for old, new in pairs), sum(old == label != new for old, new in pairs)
        otherwise = sum(old != new and label not in (old, new) for old, new in pairs)
        tallies.append(Tally(label=label, rows=len(pairs), won=won, lost=lost, wrong_otherwise=otherwise))
    return tallies
