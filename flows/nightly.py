"""The nightly flow: bring the tasks up to date, and promote what passes its gate by each task's policy."""

import logging
from functools import partial
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL

from flows.chronicle import begin, finish
from flows.night import end, show_verdict
from flows.requests import GangRequest, NightlyRequest, record_claim
from flows.server.events import send_what_waits
from flows.server.schedules import distinct_schedules, scheduled_under
from flows.spread import count_parts, spread
from flows.stages.chain import Mode, Night, run
from flows.stages.context import MACHINE, select_tasks
from flows.states import name_this_run
from flows.steps import open_context, step
from flows.turn import Skipped, take_turn
from ptpipeline.errors import NotFound
from ptpipeline.task.task import Task

EVERYTHING = NightlyRequest()

_log = logging.getLogger("ptpipeline.flows")


@flow(name="nightly", flow_run_name=name_this_run, persist_result=False)
def nightly(request: NightlyRequest = EVERYTHING) -> State[Any]:
    """Train the tasks that changed, and put what passes its gate into production by each task's policy."""
    context = open_context()
    context.started_by = MACHINE if request.schedule else record_claim(request.actor)
    id_ = begin(context, request)
    try:
        with take_turn(context, request):
            selection = select_tasks(context.settings, request.tasks)
            selection = selection._replace(tasks=narrow(selection.tasks, request.schedule))
            names = ", ".join(task.name for task in selection.tasks)
            _log.info("nightly over %s%s", names, f": {request.reason}" if request.reason else "")
            night = run(context, selection, choose_mode(request))
            state = finish(context, id_, night, end(night, "nightly"))
    except Skipped as skipped:
        state = finish(context, id_, Night({}, {}), skipped.end())
    send_what_waits(context.settings, context.registry.ledger.database)
    return state


def choose_mode(request: NightlyRequest) -> Mode:
    """Return how the night runs: here, or if the pool has several workers, one gang on each."""
    mode, api = Mode(step, isolate=True, show=show_verdict, force=request.force), PREFECT_API_URL.value()
    if not api or (parts := count_parts(api)) == 1:
        return mode
    name = request.night or str(runtime.flow_run.id)
    gang = GangRequest(tasks=[], force=request.force, actor=request.actor, schedule=request.schedule)
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
