"""The nightly flow: bring the tasks up to date, and promote what passes its gate by each task's policy."""

import logging
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.chronicle import begin, finish
from flows.night import end, show_verdict
from flows.requests import NightlyRequest, record_claim
from flows.server.events import send_what_waits
from flows.server.schedules import distinct_schedules, scheduled_under
from flows.stages.chain import Mode, run
from flows.stages.context import MACHINE, select_tasks
from flows.states import name_this_run
from flows.steps import open_context, step
from ptpipeline.errors import NotFound
from ptpipeline.task.task import Task

EVERYTHING = NightlyRequest()

_log = logging.getLogger("ptpipeline.flows")


@flow(name="nightly", flow_run_name=name_this_run, persist_result=False)
def nightly(request: NightlyRequest = EVERYTHING) -> State[Any]:
    """Train the tasks that changed, and put what passes its gate into production by each task's policy."""
    context = open_context()
    context.started_by = MACHINE if request.schedule else record_claim(request.actor)
    begin(context, request)
    selection = select_tasks(context.settings, request.tasks)
    selection = selection._replace(tasks=narrow(selection.tasks, request.schedule))
    names = ", ".join(task.name for task in selection.tasks)
    _log.info("nightly over %s%s", names, f": {request.reason}" if request.reason else "")
    night = run(context, selection, Mode(step, isolate=True, show=show_verdict))
    state = finish(context, night, end(night, "nightly"))
    send_what_waits(context.settings, context.registry.ledger.database)
    return state


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
