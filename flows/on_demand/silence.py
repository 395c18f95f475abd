"""Finds what should have happened and did not: a task without a fresh verdict, a night that did not start or does not
end, a task file that cannot be read, so that nothing is known of its task.

It asks the ledger and the task files alone, so that it also works while Prefect does not. Who finds something twice
tells it once.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim

from flows.server.events import Sent, send_events
from flows.server.schedules import distinct_schedules, find_scheduled
from ptpipeline.records.base import Record, read_clock
from ptpipeline.settings import Settings
from ptpipeline.task.folder import sound_tasks
from ptpipeline.task.task import Schedule, Task
from registry.ledger.events import record_event
from registry.ledger.ledger import Ledger
from registry.ledger.nights import RecordedNight, list_nights

GRACE = timedelta(minutes=8)  # that a night may start late; the next look, at most five minutes later, notices it
SKIPPED = "Skipped"  # the state of a night that did nothing, because another one ran or it came too late
_NIGHTS = 200  # that are looked at, newest first


class Overdue(Record):
    """What did not happen: since when it should have, and what to do, in a sentence."""

    kind: Literal["stale_task", "broken_task", "night_missing", "night_too_long"]
    about: str
    since: str
    sentence: str


class Clocks(NamedTuple):
    """The time by the ledger's clock, and how far that is ahead of this machine's clock, which dates its files."""

    time: datetime
    ahead: timedelta

    def date(self, written: datetime) -> datetime:
        """Return when a file was written by the ledger's clock."""
        return written + self.ahead


def find_overdue(ledger: Ledger, settings: Settings, time: datetime | None = None) -> list[Overdue]:
    """Return what is overdue at that time, by default now by the ledger's clock, which the nights go by too.

    Raises ServiceUnavailable if the ledger does not answer.
    """
    now = ledger.database.time()
    clocks = Clocks(time or now, now - read_clock())
    tasks, broken = sound_tasks(settings.tasks)
    latest = clocks.time + GRACE  # what is dated later was dated by a clock that was wrong
    recorded = list_nights(ledger, _NIGHTS)
    nights = [night for night in recorded if night.flow == "nightly" and _time(night.started) <= latest]
    return [
        *_broken_tasks(settings, broken, clocks),
        *_stale_tasks(ledger, settings, tasks, clocks),
        *_missing_nights(settings, tasks, nights, clocks),
        *_long_nights(settings, _find_running(nights), clocks.time),
    ]


def sound_alarm(ledger: Ledger, settings: Settings) -> tuple[list[Overdue], Sent]:
    """Notice what is overdue, send the events that are due, and return both.

    Raises ServiceUnavailable if the ledger does not answer.
    """
    return notice(ledger, settings), send_events(settings, ledger.database)


def notice(ledger: Ledger, settings: Settings) -> list[Overdue]:
    """Find what is overdue, write an event for each, and return it. Raises ServiceUnavailable if the ledger does not
    answer.
    """
    overdue = find_overdue(ledger, settings)
    tell(ledger, overdue)
    return overdue


def tell(ledger: Ledger, overdue: Sequence[Overdue]) -> None:
    """Write an event for each, once for one silence however often it is found."""
    for one in overdue:
        record: dict[str, Any] = {
            "task": one.about if one.kind in ("stale_task", "broken_task") else None,
            "alias": None,
            "actor": "alarm",
            "from": None,
            "to": None,
            "reason": one.sentence,
            "verdict": None,
            "since": one.since,
        }
        record_event(ledger.database, one.kind, record, once=[one.about, one.since])


def _broken_tasks(settings: Settings, broken: Mapping[str, str], clocks: Clocks) -> Iterator[Overdue]:
    """Yield the task files that cannot be read since longer than it takes to correct one."""
    for name, why in broken.items():
        path = settings.tasks / f"{name}.yaml"
        written = _date_file(path if path.exists() else settings.tasks)  # a name may be escaped, or end otherwise
        if clocks.time - clocks.date(written) > GRACE:
            yield Overdue(
                kind="broken_task",
                about=name,
                since=written.isoformat(),
                sentence=f"{name}: its task file cannot be read, so no night trains it and no alarm watches it: {why}",
            )


def _stale_tasks(ledger: Ledger, settings: Settings, tasks: Sequence[Task], clocks: Clocks) -> Iterator[Overdue]:
    """Yield the tasks whose newest verdict, or without one whose file, is older than `max_age`, or of unknown age."""
    judged = ledger.last_judged()
    for task in tasks:
        if task.max_age is None:
            continue
        last = judged.get(task.name)
        since = datetime.fromisoformat(last) if last else _date_declaration(settings, task)
        age = (clocks.time - (since if last else clocks.date(since))).total_seconds() / 3600
        if age > task.max_age:
            what = f"its last verdict is {age:.1f} hours old" if last else f"no verdict in {age:.1f} hours"
            what += f", more than max_age ({task.max_age:g})"
        elif last and since > clocks.time + GRACE:
            what = f"a wrong clock dated its last verdict {-age:.1f} hours ahead, so nobody knows how old it is"
        else:
            continue
        yield Overdue(
            kind="stale_task",
            about=task.name,
            since=since.isoformat(),
            sentence=f"{task.name}: {what}; look at `ptp nights`, or `ptp run {task.name}`",
        )


def _missing_nights(
    settings: Settings, tasks: Sequence[Task], nights: Sequence[RecordedNight], clocks: Clocks
) -> Iterator[Overdue]:
    """Yield the schedules whose last night did not start, though its time and the grace are over.

    One that was declared after that time is due the next time; one that waits for a night that runs is not missing.
    """
    longest = timedelta(hours=settings.night_hours)
    running = [night for night in _find_running(nights) if clocks.time - _time(night.started) < longest]
    for slug, schedule in distinct_schedules(tasks).items():
        due = last_due(schedule, clocks.time - GRACE)
        declared = min(clocks.date(_date_declaration(settings, task)) for task in find_scheduled(tasks, slug))
        started = [night for night in nights if night.cause == f"schedule {slug}" and _time(night.started) >= due]
        if declared < due and not started and not running:
            yield Overdue(
                kind="night_missing",
                about=slug,
                since=due.isoformat(),
                sentence=f"the night of the schedule {schedule.cron} {schedule.timezone} was due at "
                f"{due:%Y-%m-%d %H:%M} UTC and did not start; look at `ptp status`, at the worker and at the schedule "
                "in Prefect, or start it by `ptp trigger nightly`",
            )


def _long_nights(settings: Settings, nights: Sequence[RecordedNight], time: datetime) -> Iterator[Overdue]:
    """Yield the nights that began too long ago and have not ended."""
    for night in nights:
        hours = (time - _time(night.started)).total_seconds() / 3600
        if hours > settings.night_hours:
            yield Overdue(
                kind="night_too_long",
                about=night.id,
                since=night.started,
                sentence=f"the night that began at {night.started[:16]} UTC has not ended after {hours:.1f} hours, "
                f"more than PTP_NIGHT_HOURS ({settings.night_hours:g}); look at its page {night.page or 'in Prefect'}",
            )


def _find_running(nights: Sequence[RecordedNight]) -> list[RecordedNight]:
    """Return the nights without an end that began behind the last one that ended: an older one was killed."""
    ended = max((night.started for night in nights if night.ended and night.state != SKIPPED), default="")
    return [night for night in nights if night.ended is None and night.started > ended]


def last_due(schedule: Schedule, time: datetime) -> datetime:
    """Return when the schedule was due last before that time, in UTC."""
    local = time.astimezone(ZoneInfo(schedule.timezone))
    due: datetime = next(CronSim(schedule.cron, local, reverse=True))
    return due.astimezone(UTC)


def _date_declaration(settings: Settings, task: Task) -> datetime:
    """Return when the task's file was written last."""
    return _date_file(settings.tasks / f"{task.name}.yaml")


def _date_file(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _time(stored: str) -> datetime:
    return datetime.fromisoformat(stored)
