"""Two versions of a task against each other on today's test rows, because a person asks: no gate, and no look."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.on_demand.measure import OpenVersion, check_answers, open_version
from flows.stages.compare import SeenRows, compare
from flows.stages.context import Context
from flows.stages.ingest import ingest
from flows.stages.measure import measure
from ptpipeline.errors import DataError, NotFound
from ptpipeline.gate.disclosure import is_withheld
from ptpipeline.records.base import Record
from ptpipeline.records.data import Snapshot
from ptpipeline.records.reports import PairedDifference
from ptpipeline.records.versions import VersionRef
from ptpipeline.task.task import Task

if TYPE_CHECKING:
    from ptpipeline.evaluation.compare import Pair

NO_GATE = (
    "no look was spent on this: the gate may not use a p seen here, because nobody counts how often rows are looked "
    "at this way"
)


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


def diff(context: Context, before: VersionRef, after: VersionRef, texts: bool = False) -> Diff:
    """Compare the second version with the first, row by row, from stored reports or measured now.

    Under `gate.figures: quiet` it lists no rows. Raises NotFound if they are of two tasks or gone, DataError if they
    answer other labels than the task has now, fewer than two rows compare, or one was refused quietly.
    """
    from ptpipeline.evaluation.compare import Pair

    if before.task != after.task:
        raise NotFound(f"{before} and {after} are versions of two tasks; `ptp diff` compares two of one task")
    versions = [open_version(context, ref) for ref in (before, after)]
    for version in versions:
        check_answers(version)
        _check_disclosed(context, version)
    task = versions[0].task
    snapshot = ingest(context, task)
    with context.watch(f"{before} and {after}"):
        pair = _pair_up(context, task, snapshot, versions)
    better, worse = compare(task, pair, 0.0), compare(task, Pair(pair.theirs, pair.ours, pair.rows), 0.0)
    if isinstance(better, str) or isinstance(worse, str):
        raise DataError(f"{before} and {after} do not compare: {better}")
    # whoever knows single rows can compose a prompt for them, although both versions passed
    changed = _list_changed(task, pair) if task.gate.figures == "open" else []
    return Diff(
        task=task.name,
        before=before.number,
        after=after.number,
        snapshot=snapshot.digest,
        better=better,
        worse=worse,
        tallies=_count_answers(task, pair),
        changed=_add_texts(context, snapshot, changed) if texts else changed,
        note=NO_GATE if task.gate.figures == "open" else f"{NO_GATE}; gate.figures is quiet, so no rows are listed",
    )


def _pair_up(context: Context, task: Task, snapshot: Snapshot, versions: Sequence[OpenVersion]) -> "Pair":
    """Pair the second version with the first on the current test rows that neither learnt from."""
    from ptpipeline.evaluation.compare import Pair
    from ptpipeline.evaluation.results import Results

    store = context.registry.store
    old, new = versions
    report = measure(context, task, old.digest, snapshot)
    before = Results.of(store, report)
    after = Results.of(store, measure(context, task, new.digest, snapshot, dtype=report.compute_dtype))
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


def _check_disclosed(context: Context, version: OpenVersion) -> None:
    """Raise DataError if the version's figures on the test rows are withheld."""
    if is_withheld(context.registry.ledger.latest_verdict(version.ref.task, version.digest)):
        raise DataError(
            f"{version.ref} was refused, and its figures on the test rows are withheld (gate.figures: quiet); "
            f"`ptp show {version.ref} --reveal` spends a look to show them, then compare again"
        )
