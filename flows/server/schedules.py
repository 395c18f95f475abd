"""Schedules of the nightly flow: the tasks' own, grouped, each under a stable slug; and what must not be lost if others
are deployed. Imports no Prefect.
"""

import logging
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from flows.server.api import call, expect
from ptpipeline.errors import NotFound
from ptpipeline.task.task import Schedule, Task

log = logging.getLogger("ptpipeline.flows")

_SPELLED = str.maketrans({"*": "x", "/": "per", ",": "and", "-": "to", " ": "-", "+": "plus"})


def slug_of(schedule: Schedule) -> str:
    """Return a name that depends on cron line and time zone only, such as `0-2-x-x-x-asia-seoul`."""
    zone = schedule.timezone.replace("/", "-").replace("_", "-").replace("+", "plus")
    return f"{schedule.cron.translate(_SPELLED)}-{zone}".lower()


def distinct_schedules(tasks: Sequence[Task]) -> dict[str, Schedule]:
    """Return the different schedules of the tasks by slug, in order of slug."""
    schedules = {slug_of(task.schedule): task.schedule for task in tasks if task.schedule}
    return dict(sorted(schedules.items()))


def find_scheduled(tasks: Sequence[Task], slug: str) -> list[Task]:
    """Return the tasks whose schedule has that slug."""
    return [task for task in tasks if task.schedule and slug_of(task.schedule) == slug]


def find_slug(api: str, run: str) -> str | None:
    """Return the slug of the schedule that made the flow run; None if none did, or if it or the run is gone.

    Prefect takes the parameters of a schedule away when somebody pauses it, and does not bring them back with it.
    """
    try:
        found = call("GET", f"{api}/flow_runs/{run}")
        expect(found, created_by=dict | None)
        if (found["created_by"] or {}).get("type") != "SCHEDULE":
            return None
        return _slug_of_maker(found, call("GET", f"{api}/deployments/{found['deployment_id']}"))
    except NotFound:
        return None


def check_schedules(deployment: dict[str, Any]) -> None:
    """Raise SettingsError unless a deployment has schedules as those of Prefect are."""
    expect(deployment, schedules=list)
    for schedule in deployment["schedules"]:
        expect(schedule, slug=str | None, schedule=dict)


def _slug_of_maker(run: dict[str, Any], deployment: dict[str, Any]) -> str | None:
    expect(deployment, schedules=list)
    expect(run, created_by=dict | None)
    for schedule in deployment["schedules"]:
        expect(schedule, id=str)
    maker = run["created_by"] or {}
    return next((schedule["slug"] for schedule in deployment["schedules"] if schedule["id"] == maker.get("id")), None)


# ---------------------------------------------------------------- a deployment of changed schedules


def keep_pauses(api: str, before: dict[str, Any], after: dict[str, Any], wanted: AbstractSet[str]) -> None:
    """Pause the schedules that a deployment brought in place of paused ones, and say so; `wanted` are today's slugs.

    A schedule is known by its cron line: if that is changed in the task file, Prefect sees another one, which runs.
    """
    known = {schedule["slug"] for schedule in before["schedules"]}
    named = [schedule for schedule in before["schedules"] if schedule["slug"]]  # the others are people's own
    gone = [schedule for schedule in named if schedule["slug"] not in wanted and not schedule["active"]]
    added = [schedule for schedule in after["schedules"] if schedule["slug"] in wanted - known] if gone else []
    for schedule in added:
        kept = {"active": False, "parameters": schedule["parameters"]}  # else Prefect takes them away
        call("PATCH", f"{api}/deployments/{after['id']}/schedules/{schedule['id']}", kept)
        log.warning(
            "the schedule %s is paused, because %s was, in whose place it came; resume it in Prefect",
            schedule["slug"],
            ", ".join(str(paused["slug"]) for paused in gone),
        )


def tell_edits(known: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Say which schedules of a deployment somebody edited in Prefect: a deployment takes that back."""
    held = {schedule["slug"]: schedule["schedule"] for schedule in known["schedules"]}
    for schedule in wanted["schedules"]:
        there = held.get(schedule["slug"])
        if there and _describe(there) != (ours := _describe(schedule["schedule"])):
            log.warning(
                "the schedule %s of %s is %s again, as the task files say: in Prefect somebody had made it %s",
                schedule["slug"],
                wanted["name"],
                ours,
                _describe(there),
            )


def remove_schedules(
    api: str, deployment: dict[str, Any], schedules: Sequence[dict[str, Any]], reason: str = "no task file has it"
) -> None:
    """Remove these schedules of a deployment, and say so with the reason."""
    for schedule in schedules:
        call("DELETE", f"{api}/deployments/{deployment['id']}/schedules/{schedule['id']}")
        log.warning(
            "the schedule %s of %s is removed from Prefect: %s",
            _describe(schedule["schedule"]),
            deployment["name"],
            reason,
        )


def _describe(schedule: dict[str, Any]) -> str:
    """Return a schedule as people write it; Prefect's page also makes ones that are no cron line."""
    return f"`{schedule['cron']}` {schedule.get('timezone') or 'UTC'}" if "cron" in schedule else str(schedule)


def list_due_runs(api: str, deployment: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the scheduled runs whose time has come and that no worker took yet, each with the slug of its schedule:
    a run that is made in its place is no schedule's.
    """
    query = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    runs = call("POST", f"{api}/flow_runs/filter", query)
    # late by the server's clock, which the schedule goes by, not by this machine's
    for run in runs:
        expect(run, parameters=dict, estimated_start_time_delta=float | int)
    due = [run for run in runs if run["auto_scheduled"] and run["estimated_start_time_delta"] > 0]
    return [run | {"parameters": _complete(run, deployment)} for run in due]


def _complete(run: dict[str, Any], deployment: dict[str, Any]) -> dict[str, Any]:
    request = run["parameters"].get("request") or {}
    if not isinstance(request, dict) or request.get("schedule") or request.get("tasks") is not None:
        return dict(run["parameters"])
    return {"request": {**request, "schedule": _slug_of_maker(run, deployment)}}


def restore_due_runs(api: str, runs: Sequence[dict[str, Any]]) -> None:
    """Schedule those of the runs again that a deployment removed: with a schedule Prefect deletes all runs that wait
    for a worker, also a night of another schedule that is due.
    """
    for run in runs:
        try:
            call("GET", f"{api}/flow_runs/{run['id']}")
        except NotFound:
            due = run["expected_start_time"]
            state = {"type": "SCHEDULED", "name": "Scheduled", "state_details": {"scheduled_time": due}}
            body = {"parameters": run["parameters"], "state": state, "idempotency_key": f"due {run['id']}"}
            call("POST", f"{api}/deployments/{run['deployment_id']}/create_flow_run", body)
