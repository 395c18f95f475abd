"""The nightly flow: bring the tasks up to date, and promote what passes its gate by each task's policy."""

import logging
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.night import ended
from flows.requests import NightlyRequest
from flows.server.schedules import distinct_schedules, scheduled_under
from flows.steps import improved, opened
from ptpipeline.errors import NotFound
from ptpipeline.task.task import Task

EVERYTHING = NightlyRequest()

_log = logging.getLogger("ptpipeline.flows")


@flow(name="nightly", persist_result=False)
def nightly(request: NightlyRequest = EVERYTHING) -> State[Any]:
    """Ingest, train what changed, evaluate, gate, register, promote; one task's failure never stops another."""
    stages = opened()
    declared, broken = stages.declared() if request.tasks is None else (stages.tasks(request.tasks), {})
    tasks = chosen(declared, request.schedule)
    _log.info(
        "nightly over %s%s", ", ".join(task.name for task in tasks), f": {request.reason}" if request.reason else ""
    )
    return ended(improved(stages, tasks, promote=True, broken=broken), "nightly")


def chosen(tasks: list[Task], schedule: str | None) -> list[Task]:
    """The tasks under that schedule; NotFound where none has it, because then the deployment is older than the task
    files.
    """
    if schedule is None:
        return tasks
    found = scheduled_under(tasks, schedule)
    if not found:
        known = ", ".join(distinct_schedules(tasks)) or "none"
        raise NotFound(f"no task has the schedule {schedule!r}; there are {known}: deploy again with `ptp up`")
    return found
