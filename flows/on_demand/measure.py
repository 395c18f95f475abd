"""A version measured on a file of rows because a person asks: no gate, and no look."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flows.stages.compare import SeenRows, find_mismatch, text_of
from flows.stages.context import Context
from flows.stages.lengths import read_text, refuse_long
from ptpipeline.data.local import find_rows_file, tell_format
from ptpipeline.errors import ContextError, DataError, NotFound
from ptpipeline.foreign import parsing
from ptpipeline.private import scratch
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_ensemble
from ptpipeline.records.base import Record, digest_of
from ptpipeline.records.data import Split, SplitInfo
from ptpipeline.records.reports import Scores, TextScores
from ptpipeline.records.versions import VersionRef
from ptpipeline.task.data import Source, SplitSpec
from ptpipeline.task.folder import find_task
from ptpipeline.task.task import Task
from registry.ledger.looks import list_judging
from registry.ledger.tombstone import collected_sentence

if TYPE_CHECKING:
    from ptpipeline.data.rows import CheckedRows
    from ptpipeline.data.table import JoinedPlaces, Places
    from ptpipeline.evaluation.measurement import Measurement, Sample


class FileReport(Record):
    """A version on the rows of a file: scores and 95% intervals of the prompt and of each baseline, by name.

    `left_out` counts the rows that the checks left out, by check, and under `gate.figures: quiet` those that judge.
    `trained_on` counts the rows that the version, or what it descends from, was trained on: they are measured, and
    flatter it.
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


class OpenVersion(NamedTuple):
    """A version with what its task declares and its verified bytes."""

    ref: VersionRef
    task: Task
    artifact: Artifact

    @property
    def base_model(self) -> str:
        """The name of the base model that it is for."""
        return self.artifact.manifest.base_model.name

    @property
    def digest(self) -> str:
        """The prompt's identity."""
        return self.artifact.digest


def open_version(context: Context, ref: VersionRef) -> OpenVersion:
    """Read a version; raises NotFound if there is none, it was collected, or its task is not declared any more."""
    task = find_task(context.settings.tasks, ref.task)
    version = context.registry.ledger.version(*ref)
    if version.collected:
        raise NotFound(collected_sentence(ref.task, version.digest))
    return OpenVersion(ref, task, read_artifact(context.registry.store, ref.task, version.digest))


def check_answers(version: OpenVersion) -> None:
    """Raise DataError if the version answers other labels than the task has now."""
    reason = find_mismatch(version.task, version.artifact.manifest)
    if reason:
        raise DataError(
            f"{version.ref} cannot be measured on the rows of task {version.ref.task}: {reason}; name a version that "
            "was trained since"
        )


# ---------------------------------------------------------------- on a file


def measure_file(
    context: Context, ref: VersionRef, path: Path, form: str | None = None, delimiter: str | None = None
) -> FileReport:
    """Measure a version on the rows of a file with the task's columns; nothing is kept.

    form, delimiter: how the file is written, by default as its name and the task's source say.

    Raises DataError for a file that ingest would refuse, is not UTF-8 or has fewer than two rows, ContextError for
    a row that does not fit, NotFound if the version, or the rows that it was trained on, are gone.
    """
    version = open_version(context, ref)
    task = _replace_source(version.task, path, form, delimiter)
    check_answers(version)
    checked = _keep_fitting(context, version, _read_file(task, path), path)
    sample = _build_sample(context, version, checked, path)
    with context.watch(path.name):
        scores = _score(context, version, sample)
    seen = SeenRows(context.registry, ref.task, version.digest)
    return FileReport(
        task=ref.task,
        version=ref.number,
        file=str(path),
        rows=len(sample.rows),
        left_out={
            check.name: check.count for check in checked.checks if check.count and check.outcome in ("warned", "ok")
        }
        | ({"judging": len(checked.rows) - len(sample.rows)} if len(sample.rows) < len(checked.rows) else {}),
        trained_on=sum(row.id in seen for row in sample.rows),
        scores=scores.scores,
        interval=scores.interval,
        compute_dtype=str(context.engine(version.base_model).base.dtype).removeprefix("torch."),
    )


def _keep_fitting(context: Context, version: OpenVersion, read: "_Read", path: Path) -> "CheckedRows":
    """Return the rows that fit beside the prompt, or that are cut; ContextError if others are not to be left out."""
    from ptpipeline.data.snapshot import drop_long
    from ptpipeline.data.tokens import is_cut

    text = read_text(context.engine(version.base_model), version.task, version.artifact.manifest)
    if version.task.data.too_long == "drop":
        return drop_long(read.checked, read.places, text.find_long)
    numbers = [read.checked.rows[index].number for index in text.find_long(read.checked.rows)]
    if numbers and not is_cut(text.too_long):
        raise ContextError(refuse_long(text, str(path), read.places.describe(numbers)))
    return read.checked


def _build_sample(context: Context, version: OpenVersion, checked: "CheckedRows", path: Path) -> "Sample":
    """Return the file's rows as a test split, in an order that depends on the rows alone."""
    from ptpipeline.data.rows import identify_rows
    from ptpipeline.evaluation.measurement import Sample

    manifest = version.artifact.manifest
    rows = sorted(identify_rows(checked.rows), key=lambda row: row.id)
    if version.task.gate.figures == "quiet":
        judging = _find_judging(context, version)
        rows = [row for row in rows if text_of(row.id) not in judging]
    if len(rows) < 2:
        raise DataError(f"{path}: {len(rows)} row is left after the checks; an interval needs two")
    test = SplitInfo(rows=len(rows), labels={}, digest=digest_of([[row.id, row.text, row.label] for row in rows]))
    snapshot = context.snapshot(version.ref.task, manifest.snapshot).model_copy(update={"test": test})
    return Sample(snapshot, "test", rows)


def _find_judging(context: Context, version: OpenVersion) -> set[str]:
    """Return the texts, by digest, of the rows that judge or judged the task's candidates.

    Their figures would be those that `gate.figures: quiet` withholds.
    """
    task = version.ref.task
    snapshot = context.snapshot(task, version.artifact.manifest.snapshot)
    splits: list[Split] = ["test", "reserve"] if snapshot.reserve else ["test"]
    rows = {row for split in splits for row in context.row_ids(snapshot, split)}
    return {text_of(row) for row in rows} | list_judging(context.registry.ledger, task)


class _Scored(NamedTuple):
    scores: dict[str, Scores | TextScores]
    interval: dict[str, dict[str, tuple[float, float]]]


def _score(context: Context, version: OpenVersion, sample: "Sample") -> _Scored:
    """Score the prompt and the baselines, which learn from the rows that the version was trained on."""
    from ptpipeline.data.snapshot import load_split
    from ptpipeline.evaluation.baselines import Bare, Setup, measure_baselines
    from ptpipeline.evaluation.evaluate import measure_prompt
    from ptpipeline.storage.signed import open_signed_store

    store, engine = context.registry.store, context.engine(version.base_model)
    engine.load(version.artifact, read_ensemble(store, version.artifact))
    prompt: Measurement = measure_prompt(engine, version.artifact, sample)
    train = load_split(store, sample.snapshot, "train")
    bare = Bare.of(engine.base, version.artifact.manifest, sample, train)
    with scratch("ptp-evaluate-") as folder:  # results by row go nowhere else
        own_store = open_signed_store(context.settings.model_copy(update={"store": f"file://{folder}"}))
        messages = version.task.chat.messages if version.task.chat else ()
        setup = Setup(hard_prompt=version.task.hard_prompt, messages=messages)
        reports = measure_baselines(bare, own_store, setup)
    return _Scored(
        {"prompt": prompt.scores} | {kind: report.prompt for kind, report in reports.items()},
        {"prompt": prompt.interval} | {kind: report.interval for kind, report in reports.items()},
    )


def _replace_source(task: Task, path: Path, form: str | None, delimiter: str | None) -> Task:
    """Return the task with the file as its source; all rows are measured, so checks of splits are off.

    Raises NotFound if there is no such file, DataError if its format is not known.
    """
    path = find_rows_file(path)
    form = form or tell_format(path)
    own: dict[str, object] = {"path": str(path), "format": form}
    declared = task.data.sources.get(None) or task.data.sources["test"]
    if form == declared.format:
        own |= declared.model_dump(include={"columns", "delimiter"})
    if delimiter is not None:
        own["delimiter"] = delimiter
    with parsing(f"{path}: --delimiter", "it is one character between the fields of a csv", DataError):
        source = Source.model_validate(own)
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


class _Read(NamedTuple):
    """The rows of a file that passed, and where each stands."""

    checked: "CheckedRows"
    places: "Places | JoinedPlaces"


def _read_file(task: Task, path: Path) -> _Read:
    """Return the rows that pass the checks of ingest; DataError if a row is not UTF-8."""
    from ptpipeline.data.sources import read_rows
    from ptpipeline.data.table import is_utf8
    from ptpipeline.data.validation import check_rows

    with scratch("ptp-evaluate-") as folder:
        source = read_rows(task, folder)
    cells = zip(*source.fields.values(), source.labels, strict=True)
    broken = [number for number, row in enumerate(cells, 1) if not is_utf8("".join(cell or "" for cell in row))]
    if broken:  # the figures would be those of the rows without accents
        raise DataError(f"{path}: {source.places.describe(broken)}: not UTF-8; save the file as UTF-8")
    return _Read(check_rows(task, source), source.places)
