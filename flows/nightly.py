"""The nightly flow: bring the tasks up to date, and promote what passes its gate by each task's policy."""

import logging
from functools import partial
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State

from flows.night import end, show_verdict
from flows.requests import GangRequest, NightlyRequest
from flows.server.schedules import distinct_schedules, scheduled_under
from flows.spread import count_parts, spread
from flows.stages.chain import Mode, run
from flows.stages.context import Context, select_tasks
from flows.steps import open_context, step
from flows.turn import Skipped, take_turn
from ptpipeline.errors import NotFound
from ptpipeline.task.task import Task

EVERYTHING = NightlyRequest()

_log = logging.getLogger("ptpipeline.flows")


@flow(name="nightly", persist_result=False)
def nightly(request: NightlyRequest = EVERYTHING) -> State[Any]:
    """Ingest, train what changed, evaluate, gate, register, promote; one task's failure never stops another."""
    context = open_context()
    try:
        with take_turn(context, request):
            selection = select_tasks(context.settings, request.tasks)
            selection = selection._replace(tasks=narrow(selection.tasks, request.schedule))
            names = ", ".join(task.name for task in selection.tasks)
            _log.info("nightly over %s%s", names, f": {request.reason}" if request.reason else "")
            return end(run(context, selection, choose_mode(context, request)), "nightly")
    except Skipped as skipped:
        return skipped.end()


def choose_mode(context: Context, request: NightlyRequest) -> Mode:
    """Return how the night runs: here, or if the pool has several workers, one gang on each."""
    mode, api = Mode(step, isolate=True, show=show_verdict, force=request.force), context.settings.prefect
    if api is None or (parts := count_parts(api)) == 1:
        return mode
    name = request.night or str(runtime.flow_run.id)
    gang = GangRequest(tasks=[], force=request.force)
    return mode._replace(parts=parts, spread=partial(spread, api, name, gang))


def narrow(tasks: list[Task], schedule: str | None) -> list[Task]:
    """Return the tasks under that schedule, or all without one.

    Raises NotFound if no task has it: then the deployment is older than the task files.
    """
    if schedule is None:
        return tasks
    scheduled = scheduled_under(tasks, schedule)
    if not scheduled:
        known = ", ".join(distinct_schedules(tasks)) or "none"
        raise NotFound(f"no task has the schedule {schedule!r}; there are {known}: deploy again with `ptp up`")
    return scheduled
