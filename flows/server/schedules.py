"""Schedules of the nightly flow: the tasks' own, grouped, each under a stable slug. Imports no Prefect."""

from collections.abc import Sequence

from ptpipeline.task.task import Schedule, Task

_SPELLED = str.maketrans({"*": "x", "/": "per", ",": "and", "-": "to", " ": "-", "+": "plus"})


def slug_of(schedule: Schedule) -> str:
    """Return a name that depends on cron line and time zone only, such as `0-2-x-x-x-asia-seoul`."""
    zone = schedule.timezone.replace("/", "-").replace("_", "-").replace("+", "plus")
    return f"{schedule.cron.translate(_SPELLED)}-{zone}".lower()


def distinct_schedules(tasks: Sequence[Task]) -> dict[str, Schedule]:
    """Return the different schedules of the tasks by slug, in order of slug."""
    schedules = {slug_of(task.schedule): task.schedule for task in tasks if task.schedule}
    return dict(sorted(schedules.items()))


def scheduled_under(tasks: Sequence[Task], slug: str) -> list[Task]:
    """Return the tasks whose schedule has that slug."""
    return [task for task in tasks if task.schedule and slug_of(task.schedule) == slug]
