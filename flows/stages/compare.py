"""Two versions of a task on the same rows: whether they compare, on which rows, and by how much they differ."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from flows.stages.context import Context
from flows.stages.measure import measure
from ptpipeline.errors import ArtifactError, BaseModelError, ContextError, DataError, NotFound
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.reports import PairedDifference, Report
from ptpipeline.task.task import Task
from ptpipeline.task.template import list_fields, read_template
from registry.lineage.descent import inherited_rows, training_rows
from registry.registry import Registry

if TYPE_CHECKING:
    from ptpipeline.data.rows import Row
    from ptpipeline.evaluation.compare import Pair
    from ptpipeline.evaluation.results import Results

INCOMPARABLE = (ArtifactError, BaseModelError, ContextError, DataError, NotFound)
_TEXT_DIGITS = 16  # a row's id starts with this many digits of its text's digest


class SeenRows:
    """The rows that a version saw in training, read once; reading raises what `training_rows` raises."""

    def __init__(self, registry: Registry, task: str, digest: str) -> None:
        self.digest = digest
        self._registry = registry
        self._task = task

    @cached_property
    def own(self) -> list["Row"]:
        """The rows that the version itself was trained on."""
        return training_rows(self._registry, self._task, self.digest)

    @cached_property
    def inherited(self) -> set[str]:
        """The texts that only its ancestors were trained on, by digest."""
        rows = inherited_rows(self._registry, self._task, self.digest)
        return {text_of(row.id) for row in rows} - self._own_texts

    def select_unseen(self, ids: Sequence[str]) -> list[str]:
        """Return those rows that neither the version, nor what it descends from, was trained on."""
        return [row for row in ids if row not in self]

    def __contains__(self, row: str) -> bool:
        """Whether the version, or what it descends from, was trained on that row."""
        return text_of(row) in self._own_texts or self.is_inherited(row)

    def is_inherited(self, row: str) -> bool:
        """Whether only what the version descends from was trained on that row."""
        return text_of(row) in self.inherited

    @cached_property
    def _own_texts(self) -> set[str]:
        return {text_of(row.id) for row in self.own}


def text_of(row: str) -> str:
    """Return the digest of a row's text, which its id starts with."""
    return row[:_TEXT_DIGITS]


class Measured(NamedTuple):
    """A candidate's report, its results by row, and the rows on which it may be compared."""

    report: Report
    results: "Results"
    rows: Sequence[str]


def pair_with(context: Context, task: Task, measured: Measured, rival: SeenRows) -> "Pair | str":
    """Pair a candidate with another version on the rows that neither learnt from; a sentence if they do not compare."""
    from ptpipeline.evaluation.compare import Pair
    from ptpipeline.evaluation.results import Results

    reason = find_obstacle(context, task, rival)
    if reason:
        return reason
    report = measured.report
    try:
        snapshot = context.snapshot(task.name, report.snapshot)
        rival_report = measure(context, task, rival.digest, snapshot, report.split, report.compute_dtype)
        theirs = Results.of(context.registry.store, rival_report)
    except INCOMPARABLE as error:
        return str(error)
    rows = select_comparable(rival, measured.rows)
    return rows if isinstance(rows, str) else Pair(measured.results, theirs, rows)


def find_obstacle(context: Context, task: Task, rival: SeenRows) -> str | None:
    """Say why nothing can be compared with a version: it is gone, answers other labels, or its rows are not known."""
    try:
        manifest = read_artifact(context.registry.store, task.name, rival.digest).manifest
        _ = rival.own
    except INCOMPARABLE as error:
        return str(error)
    return find_mismatch(task, manifest)


def find_mismatch(task: Task, manifest: PromptManifest) -> str | None:
    """Say that a prompt answers other labels than the task has now, or reads other fields; None if they are the
    same.
    """
    if (fields := read_template(manifest).names) != list(task.columns):
        return f"it reads {list_fields(fields)}, the task's rows now have {list_fields(task.columns)}"
    if set(manifest.labels) == set(task.labels):
        return None
    now = f"has {', '.join(task.labels)}" if task.labels else "asks for free text"
    return f"it answers {'the ' if manifest.labels else ''}{manifest.answers}, the task now {now}"


def select_comparable(rival: SeenRows, rows: Sequence[str]) -> list[str] | str:
    """Return the rows that a version did not learn from; a sentence if it learnt from most of them.

    That happens with a reserve that was cut out after the version was trained.
    """
    unseen = rival.select_unseen(rows)
    if 2 * len(unseen) < len(rows):
        seen = len(rows) - len(unseen)
        return f"it, or what it descends from, was trained on {seen} of the {len(rows)} rows that judge"
    return unseen


def compare(task: Task, pair: "Pair | str", margin: float) -> PairedDifference | str:
    """Return the first minus the second by the gate's metric; a sentence if they do not compare."""
    from ptpipeline.evaluation.compare import compare_pair
    from ptpipeline.evaluation.paired import Hypothesis

    if isinstance(pair, str):
        return pair
    if len(pair.rows) < 2:
        return f"neither was trained on {len(pair.rows)} of today's test rows; a comparison needs two"
    hypothesis = Hypothesis(task.gate.metric, task.gate.champion.confidence, margin)
    return compare_pair(task, pair, hypothesis).model_copy(update={"dropped": len(pair.ours.ids) - len(pair.rows)})
