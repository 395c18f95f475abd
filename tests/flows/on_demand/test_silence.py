"""Silence is noticed within 15 minutes by the ledger and the task files alone, and told once."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from benchmarks.fixtures.prompts import a_task, published
from flows.on_demand.silence import Overdue, find_overdue, last_due, tell
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore
from ptpipeline.task.task import Schedule
from registry.ledger import tables
from registry.ledger.events import take_due
from registry.ledger.ledger import Ledger
from registry.ledger.nights import NightTask, RecordedNight, begin_night, end_night, list_nights
from registry.registry import Registry

NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
LONG_AGO = NOON - timedelta(days=30)
SLUG = "0-2-x-x-x-asia-seoul"  # 17:00 UTC
FILE = """\
name: mood
base_model: tiny
data: {source: {path: rows.csv, format: csv}, text: text, label: label}
template: "{text}\\nMood:"
labels: {bad: " bad", good: " good"}
gate: {metric: accuracy, minimum: 0.8}
"""


class Place:
    """A folder with a ledger and one task file, which was written long ago."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(Ledger(f"sqlite:///{folder}/ledger.db"), FolderStore(folder / "store"))
        self.settings = Settings(home=folder, tasks=folder)

    def declare(self, line: str, written: datetime = LONG_AGO) -> None:
        path = self.settings.tasks / "mood.yaml"
        path.write_text(f"{FILE}{line}\n")
        os.utime(path, (written.timestamp(), written.timestamp()))

    def judge(self, at: datetime) -> None:
        published(self.registry, a_task(), 1)
        with self.registry.ledger.database.writing() as connection:
            connection.execute(update(tables.judged).values(at=at.isoformat()))

    def night(self, id_: str, started: datetime, cause: str = f"schedule {SLUG}", flow: str = "nightly") -> None:
        row = RecordedNight(id=id_, flow=flow, cause=cause, page=None, started=started.isoformat())
        begin_night(self.registry.ledger, row)

    def end(self, id_: str, *tasks: NightTask, state: str = "Completed") -> None:
        [begun] = [night for night in list_nights(self.registry.ledger, 99) if night.id == id_]
        end_night(self.registry.ledger, begun, state, tasks)

    def overdue(self, time: datetime = NOON) -> list[Overdue]:
        return find_overdue(self.registry.ledger, self.settings, time)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize(("hours", "stale"), [(29.9, False), (30, False), (30.1, True)])
def test_a_task_without_a_fresh_verdict_is_stale(place: Place, hours: float, stale: bool) -> None:
    place.declare("max_age: 30")
    place.judge(NOON - timedelta(hours=hours))
    assert [one.kind for one in place.overdue()] == ["stale_task"] * stale


def test_a_night_in_which_nothing_changed_is_a_fresh_verdict(place: Place) -> None:
    place.declare("max_age: 30")
    place.judge(LONG_AGO)
    published(place.registry, a_task(), 1)  # the same candidate with the same verdict
    assert place.overdue(datetime.now(UTC) + timedelta(hours=1)) == []


def test_a_stale_task_is_told_in_a_sentence(place: Place) -> None:
    place.declare("max_age: 30")
    place.judge(NOON - timedelta(hours=31))
    [one] = place.overdue()
    assert one.sentence.startswith("mood: its last verdict is 31.0 hours old, more than max_age (30); look at")


@pytest.mark.parametrize(("hours", "stale"), [(1, False), (31, True)])
def test_a_task_that_was_never_judged_counts_from_its_file(place: Place, hours: int, stale: bool) -> None:
    place.declare("max_age: 30", NOON - timedelta(hours=hours))
    assert [one.sentence[:25] for one in place.overdue()] == ["mood: no verdict in 31.0 h"[:25]] * stale


def test_a_verdict_from_the_future_is_stale_because_nobody_knows_its_age(place: Place) -> None:
    place.declare("max_age: 30")
    place.judge(NOON + timedelta(days=30))
    assert [one.sentence for one in place.overdue()] == [
        "mood: a wrong clock dated its last verdict 720.0 hours ahead, so nobody knows how old it is; look at "
        "`ptp nights`, or `ptp run mood`"
    ]


def test_a_task_without_max_age_is_never_stale(place: Place) -> None:
    place.declare("promote: manual")
    place.judge(LONG_AGO)
    assert place.overdue() == []


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_machine_with_another_clock_alarms_about_the_same(
    place: Place, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock dates its task files, and nothing else: verdicts and nights have the ledger's time."""
    now, off = datetime.now(UTC), timedelta(hours=hours)
    monkeypatch.setattr("flows.on_demand.silence.read_clock", lambda: datetime.now(UTC) + off)
    due = now - timedelta(minutes=30)
    cron = f"{due.minute} {due.hour} * * *"
    place.declare(f"max_age: 0.9\nschedule: {{cron: '{cron}', timezone: UTC}}", now - timedelta(minutes=20) + off)
    place.judge(now - timedelta(minutes=50))
    assert find_overdue(place.registry.ledger, place.settings) == []  # the night is due for the first time tomorrow
    place.declare(f"max_age: 0.8\nschedule: {{cron: '{cron}', timezone: UTC}}", now - timedelta(minutes=40) + off)
    assert {one.kind for one in find_overdue(place.registry.ledger, place.settings)} == {"stale_task", "night_missing"}
    place.declare("max_age: soon", now - timedelta(minutes=5) + off)
    assert find_overdue(place.registry.ledger, place.settings) == []


@pytest.mark.parametrize(("minutes", "told"), [(7, False), (9, True)])
def test_a_task_file_that_cannot_be_read_is_told(place: Place, minutes: int, told: bool) -> None:
    place.declare("max_age: soon", NOON - timedelta(minutes=minutes))
    assert [(one.kind, one.about) for one in place.overdue()] == [("broken_task", "mood")] * told


def test_a_task_file_with_another_ending_is_told(place: Place) -> None:
    place.declare("max_age: 30")
    (place.settings.tasks / "mood.yaml").rename(place.settings.tasks / "mood.yml")
    [one] = place.overdue(datetime.now(UTC) + timedelta(hours=1))
    assert "files of tasks end in .yaml" in one.sentence


# ---------------------------------------------------------------- nights that do not start

DUE = datetime(2026, 11, 25, 17, 0, tzinfo=UTC)
SCHEDULED = 'schedule: {cron: "0 2 * * *", timezone: Asia/Seoul}'


@pytest.mark.parametrize(("minutes", "missing"), [(7, False), (9, True), (600, True)])
def test_a_night_that_did_not_start_is_missing_within_a_quarter_of_an_hour(
    place: Place, minutes: int, missing: bool
) -> None:
    place.declare(SCHEDULED)
    place.night("before", DUE - timedelta(hours=23))
    place.end("before")
    found = place.overdue(DUE + timedelta(minutes=minutes))
    assert [(one.kind, one.about) for one in found] == [("night_missing", SLUG)] * missing


@pytest.mark.parametrize("minutes", [0, 1])
def test_a_night_that_started_is_not_missing(place: Place, minutes: int) -> None:
    place.declare(SCHEDULED)
    place.night("tonight", DUE + timedelta(minutes=minutes))
    place.end("tonight")
    assert place.overdue(DUE + timedelta(hours=1)) == []


@pytest.mark.parametrize(("cause", "flow"), [("asked for", "nightly"), (f"schedule {SLUG}", "tune")])
def test_another_run_is_not_the_night(place: Place, cause: str, flow: str) -> None:
    place.declare(SCHEDULED)
    place.night("other", DUE + timedelta(minutes=1), cause, flow)
    place.end("other")
    assert [one.kind for one in place.overdue(DUE + timedelta(hours=1))] == ["night_missing"]


def test_a_night_from_the_future_hides_no_missing_night(place: Place) -> None:
    """A clock that was ahead dated it."""
    place.declare(SCHEDULED)
    place.night("ahead", DUE + timedelta(days=30))
    place.end("ahead")
    assert [one.kind for one in place.overdue(DUE + timedelta(hours=1))] == ["night_missing"]


def test_a_night_that_waits_for_another_is_not_missing(place: Place) -> None:
    place.declare(SCHEDULED)
    place.night("earlier", DUE - timedelta(hours=2), "asked for")
    assert place.overdue(DUE + timedelta(hours=1)) == []


def test_a_schedule_declared_after_its_time_is_due_the_next_time(place: Place) -> None:
    place.declare(SCHEDULED, DUE + timedelta(hours=1))
    assert place.overdue(DUE + timedelta(hours=2)) == []
    assert [one.kind for one in place.overdue(DUE + timedelta(hours=25))] == ["night_missing"]


def test_a_task_that_joined_a_schedule_hides_no_missing_night(place: Place) -> None:
    place.declare(SCHEDULED)
    joined = (place.settings.tasks / "mood.yaml").read_text().replace("name: mood", "name: topic")
    (place.settings.tasks / "topic.yaml").write_text(joined)
    os.utime(place.settings.tasks / "topic.yaml", ((DUE + timedelta(minutes=1)).timestamp(),) * 2)
    assert [one.kind for one in place.overdue(DUE + timedelta(hours=1))] == ["night_missing"]


@pytest.mark.parametrize(
    ("day", "due"),
    [
        ("2026-10-25T12:00:00+00:00", "2026-10-25T01:30:00+00:00"),  # 02:30 comes twice; the second is the last
        ("2026-03-29T12:00:00+00:00", "2026-03-29T01:00:00+00:00"),  # 02:30 does not come: 03:00 is what it is
        ("2026-06-01T12:00:00+00:00", "2026-06-01T00:30:00+00:00"),
    ],
)
def test_the_nights_of_a_changed_clock_are_due_once(day: str, due: str) -> None:
    schedule = Schedule(cron="30 2 * * *", timezone="Europe/Berlin")
    found = last_due(schedule, datetime.fromisoformat(day))
    assert abs(found - datetime.fromisoformat(due)) <= timedelta(hours=1)
    assert found.date() == datetime.fromisoformat(day).date()


# ---------------------------------------------------------------- nights that do not end


@pytest.mark.parametrize(("hours", "long"), [(11, False), (12, False), (13, True)])
def test_a_night_that_does_not_end_is_too_long(place: Place, hours: int, long: bool) -> None:
    place.night("tonight", NOON - timedelta(hours=hours))
    found = place.overdue()
    assert [one.kind for one in found] == ["night_too_long"] * long
    place.end("tonight")
    assert place.overdue() == []


def test_a_night_that_was_killed_is_forgotten_when_another_ended(place: Place) -> None:
    place.night("killed", NOON - timedelta(hours=40))
    place.night("skipped", NOON - timedelta(hours=16))
    place.end("skipped", state="Skipped")
    place.night("tonight", NOON - timedelta(hours=1))
    assert [one.about for one in place.overdue()] == ["killed"]
    place.end("tonight")
    assert place.overdue() == []


def test_a_night_that_died_long_ago_hides_no_missing_one(place: Place) -> None:
    place.declare(SCHEDULED)
    place.night("killed", DUE - timedelta(hours=30))
    assert {one.kind for one in place.overdue(DUE + timedelta(hours=1))} == {"night_too_long", "night_missing"}


# ---------------------------------------------------------------- told once


def test_a_silence_is_told_once_and_the_next_one_again(place: Place) -> None:
    place.declare("max_age: 30")
    database = place.registry.ledger.database
    for last, look in ((40, 0), (40, 5), (40, 10)):
        place.judge(NOON - timedelta(hours=last))
        tell(place.registry.ledger, place.overdue(NOON + timedelta(minutes=look)))
    event = take_due(database, "ops")
    assert event
    assert (event.kind, event.record["task"], event.record["actor"]) == ("stale_task", "mood", "alarm")
    assert take_due(database, "ops") is None
    place.judge(NOON)
    tell(place.registry.ledger, place.overdue(NOON + timedelta(hours=31)))
    assert take_due(database, "ops")


def test_an_event_names_the_task_whose_file_is_broken_and_none_for_a_night(place: Place) -> None:
    place.declare("max_age: soon")
    place.night("tonight", NOON - timedelta(hours=13))
    tell(place.registry.ledger, place.overdue())
    told = {}
    while event := take_due(place.registry.ledger.database, "ops"):
        told[event.kind] = event.record["task"]
    assert told == {"broken_task": "mood", "night_too_long": None}


def test_the_end_of_a_night_is_an_event(place: Place) -> None:
    place.night("tonight", NOON)
    for _ in range(2):
        place.end("tonight", NightTask(task="mood", status="promoted", reason="better"))
    event = take_due(place.registry.ledger.database, "ops")
    assert event
    assert event.kind == "night_ended"
    assert event.record["reason"] == "nightly ended as Completed: 1 promoted"
    assert event.record["tasks"] == {"mood": "promoted"}
    assert take_due(place.registry.ledger.database, "ops") is None
