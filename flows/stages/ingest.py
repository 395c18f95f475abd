"""The stage that brings a task's snapshot up to date with its source."""

from flows.stages.context import Context
from flows.stages.lengths import build_text
from ptpipeline.models.base import identify_tokenizer
from ptpipeline.records.data import Snapshot
from ptpipeline.settings import Settings
from ptpipeline.task.task import Task


def find_source_key(settings: Settings, task: Task) -> str:
    """Return the key that a snapshot of the task's source as it is now would have; no more is read than that takes.

    Raises what `source_key` raises, and BaseModelError if the base that counts the tokens of rows cannot be found.
    """
    from ptpipeline.data.sources import source_key

    return source_key(task, settings.home, _identify_counting(settings, task))


def _identify_counting(settings: Settings, task: Task) -> str | None:
    """Return the identity of what counts the tokens of the task's rows; None if no row is left out for its length."""
    return identify_tokenizer(task.base_model, settings) if task.data.too_long == "drop" else None


def ingest(context: Context, task: Task) -> Snapshot:
    """Return the task's snapshot; an unchanged source makes no new one."""
    from ptpipeline.data.snapshot import take_snapshot
    from ptpipeline.data.sources import OpenSource, describe_key

    registry, home = context.registry, context.settings.home
    opened = OpenSource(task, home, _identify_counting(context.settings, task))
    known = registry.ledger.snapshot_for(task.name, opened.key)
    if known is not None:
        registry.ledger.save_snapshot(known)  # it is used again: from now on the garbage collection keeps it
        if context.has_rows(known):
            covered = describe_key(task)
            context.report(f"{task.name}: source unchanged (by {covered}), snapshot {known.digest[:12]} stands")
            return known
    find_long = build_text(context, task).find_long if task.data.too_long == "drop" else None
    snapshot = take_snapshot(task, registry.store, home, find_long, opened)
    registry.ledger.save_snapshot(snapshot)
    if not context.has_rows(snapshot):  # an old one of the same rows was collected between the two
        snapshot = take_snapshot(task, registry.store, home, find_long, opened)
    noticed = ", ".join(f"{check.name} {check.count}" for check in snapshot.checks if check.outcome == "warned")
    rows = ", ".join(f"{name} {info.rows}" for name, info in snapshot.splits().items())
    context.report(f"{task.name}: snapshot {snapshot.digest[:12]}, rows: {rows}; noticed: {noticed or 'nothing'}")
    return snapshot
