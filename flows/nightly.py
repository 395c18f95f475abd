"""The nightly flow: bring the tasks up to date, and promote what passes its gate by each task's policy."""

import logging
from contextlib import nullcontext
from functools import partial
from typing import Any

import stamina
from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL
from prefect.states import Failed

from flows.chronicle import begin, finish, noting_cancellation
from flows.clock import check_clock
from flows.night import end, name_starter, show_verdict
from flows.requests import GangRequest, NightlyRequest
from flows.server.events import send_what_waits
from flows.server.schedules import distinct_schedules, find_scheduled, find_slug
from flows.spread import count_parts, spread
from flows.stages.chain import PATIENCE, Mode, Night, run
from flows.stages.context import select_tasks
from flows.states import name_this_run
from flows.steps import open_context, step
from flows.turn import Skipped, take_turn
from ptpipeline.errors import NotFound, Overtaken, PtpError, Transient
from ptpipeline.task.task import Task

EVERYTHING = NightlyRequest()

_log = logging.getLogger("ptpipeline.flows")


@flow(name="nightly", flow_run_name=name_this_run, persist_result=False)
def nightly(request: NightlyRequest = EVERYTHING) -> State[Any]:
    """Train the tasks that changed, and put what passes its gate into production by each task's policy."""
    if request.cancelled:
        return Skipped("a person cancelled or suspended the run that this one would go on with").end()
    check_clock()
    request = complete(request)
    context = open_context()
    context.started_by = name_starter(request.actor, request.schedule)
    begun = begin(context, request)
    try:
        # while a run that resumes waits, the row is that of the run that it waits for
        mine = nullcontext() if request.resumes else noting_cancellation(context, begun)
        with mine, take_turn(context, request), noting_cancellation(context, begun):
            selection = select_tasks(context.settings, request.tasks)
            selection = selection._replace(tasks=narrow(selection.tasks, request.schedule))
            names = ", ".join(task.name for task in selection.tasks)
            _log.info("nightly over %s%s", names, f": {request.reason}" if request.reason else "")
            night = run(context, selection, choose_mode(request, begun.id))
            state = finish(context, begun, night, end(night, "nightly"))
    except Skipped as skipped:
        state = skipped.end()
        if not request.resumes:  # else the row is that of the run that still works
            state = finish(context, begun, Night({}, {}), state)
    except Overtaken:
        raise  # the row is the other run's
    except PtpError as error:
        finish(context, begun, Night({}, {}), Failed(message=str(error)))
        send_what_waits(context.settings, context.registry.ledger.database)
        raise
    send_what_waits(context.settings, context.registry.ledger.database)
    return state


@stamina.retry(on=Transient, attempts=None, timeout=600.0, wait_initial=1.0, wait_max=30.0)
def complete(request: NightlyRequest) -> NightlyRequest:
    """Return the request with the slug of the schedule that made the run, where Prefect did not pass it on.

    A server that is away is asked again, for ten minutes.
    """
    api = PREFECT_API_URL.value()
    if not api or request.schedule or request.tasks is not None:
        return request
    return request.model_copy(update={"schedule": find_slug(api, request.night or str(runtime.flow_run.id))})


def choose_mode(request: NightlyRequest, id_: str) -> Mode:
    """Return how the night of that id runs: here, or if others can take them, one run for each gang."""
    mode = Mode(step, isolate=True, show=show_verdict, force=request.force, patience=PATIENCE)
    api = PREFECT_API_URL.value()
    if not api or (parts := count_parts(api)) is None:
        return mode
    gang = GangRequest(tasks=[], force=request.force, actor=request.actor, schedule=request.schedule)
    return mode._replace(parts=parts, spread=partial(spread, api, id_, gang, str(runtime.flow_run.id)))


def narrow(tasks: list[Task], schedule: str | None) -> list[Task]:
    """Return the tasks under that schedule, or all without one.

    Raises NotFound if no task has it: then the deployment is older than the task files.
    """
    if schedule is None:
        return tasks
    scheduled = find_scheduled(tasks, schedule)
    if not scheduled:
        known = ", ".join(distinct_schedules(tasks)) or "none"
        raise NotFound(f"no task has the schedule {schedule!r}; there are {known}: deploy again with `ptp up`")
    return scheduled
