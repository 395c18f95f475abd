"""The stage that finds out whose source has rows that no snapshot has, without reading them."""

import logging
from collections.abc import Sequence

from flows.stages.context import Context
from flows.stages.ingest import find_source_key
from ptpipeline.errors import PtpError
from ptpipeline.task.task import Task

log = logging.getLogger("ptpipeline.flows")


def find_changed(context: Context, tasks: Sequence[Task]) -> dict[str, str]:
    """Return the source key of each watched task whose source changed since its last ingest, by task.

    A source that does not answer is looked at again by the next run.
    """
    changed = {}
    for task in (task for task in tasks if task.watch):
        try:
            key = find_source_key(context.settings, task)
        except PtpError as error:
            log.warning("%s: its source could not be looked at: %s", task.name, error)
            continue
        if context.registry.ledger.snapshot_for(task.name, key) is None:
            changed[task.name] = key
    return changed
