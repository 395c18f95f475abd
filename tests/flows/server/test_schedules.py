"""Schedules: slugs, grouping, and the rendered deployments."""

import asyncio
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect._internal.schemas.validators import validate_cron_string
from prefect.server.schemas.schedules import CronSchedule
from pydantic import ValidationError

from flows.nightly import narrow
from flows.server.schedules import (
    distinct_schedules,
    find_scheduled,
    find_slug,
    keep_pauses,
    list_due_runs,
    restore_due_runs,
    slug_of,
)
from ptpipeline.errors import NotFound
from ptpipeline.task.folder import load_task, task_files
from ptpipeline.task.task import Schedule, Task
from tests.flows.server.test_prefect import Prefect, listening

PROJECT = Path(__file__).parents[3]
FIELD = st.sampled_from(["*", "1", "5", "*/2", "*/5", "1,3", "1-3", "1-5"])


@pytest.fixture
def shipped() -> list[Task]:
    return [load_task(path) for path in task_files(PROJECT / "tasks")]


def on(task: Task, cron: str, timezone: str) -> Task:
    return task.model_copy(update={"schedule": Schedule(cron=cron, timezone=timezone)})


@given(st.lists(FIELD, min_size=5, max_size=5), st.lists(FIELD, min_size=5, max_size=5))
def test_different_cron_lines_have_different_slugs(one: list[str], other: list[str]) -> None:
    first, second = Schedule(cron=" ".join(one)), Schedule(cron=" ".join(other))
    assert (slug_of(first) == slug_of(second)) == (first == second)


ATOMS = ["*", "0", "5", "31", "*/2", "*/61", "5/15", "1-5", "1-5/2", "L", "LW", "L/2", "L5", "5L", "FRIL", "5#2", "5#6"]
ATOMS += ["MON", "mon-fri", "JAN", "1,2", "1,L", "1,5#2", "5#1,5#2", "?", "H", "R", "1,", "W", "15W", "0-0", "5-1"]


@given(st.lists(st.sampled_from(ATOMS) | FIELD, min_size=5, max_size=5))
def test_prefect_takes_every_cron_line_that_a_task_file_may_have(fields: list[str]) -> None:
    line = " ".join(fields)
    try:
        Schedule(cron=line)
    except ValidationError:
        return
    validate_cron_string(line)


@pytest.mark.parametrize(
    "line", [f"{' '.join(['0'] * at + [atom] + ['*'] * (4 - at))}" for at in range(5) for atom in ATOMS]
)
def test_prefect_takes_a_lone_field(line: str) -> None:
    try:
        Schedule(cron=line)
    except ValidationError:
        return
    validate_cron_string(line)


@pytest.mark.parametrize("line", ["0 2 LW * *", "0 2 * * 5L", "0 2 L/2 * *", "0 2 * * FRIL", "0 2 * * 1,5#2"])
def test_what_prefect_does_not_know_is_refused(line: str) -> None:
    with pytest.raises(ValidationError, match=r"Prefect, which starts the runs|Bad day-of-week"):
        Schedule(cron=line)


@pytest.mark.parametrize("zone", ["posixrules", "right/UTC", "posix/UTC", "asia/seoul", "", "../UTC", "/etc/localtime"])
def test_a_zone_that_prefect_does_not_know_is_refused(zone: str) -> None:
    with pytest.raises(ValidationError, match="not a time zone of the tz database"):
        Schedule(cron="0 2 * * *", timezone=zone)


@pytest.mark.parametrize(
    ("cron", "zone", "evening"),
    [
        ("30 2 * * *", "Europe/Berlin", datetime(2026, 3, 28, 12)),  # 02:30 does not exist in the next night
        ("30 2 * * *", "Europe/Berlin", datetime(2026, 10, 24, 12)),  # 02:30 comes twice
        ("30 1 * * *", "America/New_York", datetime(2026, 10, 31, 12)),  # 01:30 comes twice
        ("0 0 * * *", "America/Havana", datetime(2026, 3, 7, 12)),  # midnight does not exist: it comes an hour before
    ],
)
def test_a_night_of_a_changed_clock_has_one_run(cron: str, zone: str, evening: datetime) -> None:
    schedule = CronSchedule(cron=cron, timezone=zone)
    start = evening.replace(tzinfo=ZoneInfo(zone))
    runs = asyncio.run(schedule.get_dates(n=9, start=start, end=start + timedelta(days=3, hours=3)))
    assert len(runs) == 3
    instants = [run.timestamp() for run in runs]
    assert all(23 <= (later - earlier) / 3600 <= 25 for earlier, later in pairwise(instants))


def test_a_slug_is_a_plain_name() -> None:
    assert (
        slug_of(Schedule(cron="*/5 1,3 * * 1-5", timezone="America/New_York"))
        == "xper5-1and3-x-x-1to5-america-new-york"
    )


def test_tasks_with_one_schedule_share_a_slug(shipped: list[Task]) -> None:
    assert list(distinct_schedules(shipped)) == ["0-2-x-x-x-asia-seoul"]


def test_a_schedule_takes_only_its_own_tasks(shipped: list[Task]) -> None:
    tasks = [shipped[0], on(shipped[1], "0 5 * * *", "UTC")]
    assert find_scheduled(tasks, "0-5-x-x-x-utc") == [tasks[1]]


def test_a_schedule_no_task_has_is_refused_by_name(shipped: list[Task]) -> None:
    with pytest.raises(NotFound, match="no task has the schedule 'gone'; there are 0-2-x-x-x-asia-seoul: deploy again"):
        narrow(shipped, "gone")


# ---------------------------------------------------------------- a deployment of changed schedules


def schedule(slug: str, active: bool = True) -> dict[str, object]:
    return {"slug": slug, "id": f"id-{slug}", "active": active, "parameters": {"request": {"schedule": slug}}}


@pytest.mark.parametrize(
    ("before", "after", "paused"),
    [
        ([schedule("old", active=False)], ["new"], ["new"]),
        ([schedule("old", active=False), schedule("same")], ["same", "new"], ["new"]),
        ([schedule("old")], ["new"], []),  # what ran is replaced by what runs
        ([schedule("same", active=False)], ["same", "new"], []),  # nothing went, so nothing came in its place
        ([{**schedule("mine", active=False), "slug": None}], ["new"], []),  # a person's own
    ],
)
def test_a_schedule_in_place_of_a_paused_one_is_paused(
    before: list[dict[str, object]], after: list[str], paused: list[str]
) -> None:
    earlier, now = {"schedules": before}, {"id": "d", "schedules": [schedule(slug) for slug in [*after, "gone"]]}
    changes = {f"PATCH /deployments/d/schedules/id-{slug}": lambda _: (204, b"") for slug in [*after, "gone"]}
    with listening(Prefect(changes)) as prefect:
        keep_pauses(prefect.url, earlier, now, set(after))
    sent = {slug: {"active": False, "parameters": {"request": {"schedule": slug}}} for slug in paused}
    assert prefect.asked == [(f"PATCH /deployments/d/schedules/id-{slug}", body) for slug, body in sent.items()]


def test_a_due_run_that_a_deployment_removed_is_scheduled_again_for_its_time_and_once() -> None:
    due = "2026-11-26T17:00:00Z"
    gone, kept = (
        {"id": name, "deployment_id": "d", "expected_start_time": due, "parameters": {"request": {"schedule": "x"}}}
        for name in ("gone", "kept")
    )
    answers = {
        "GET /flow_runs/kept": lambda _: (200, {}),
        "POST /deployments/d/create_flow_run": lambda _: (201, {}),
    }
    with listening(Prefect(answers)) as prefect:
        restore_due_runs(prefect.url, [gone, kept])
    [made] = prefect.bodies("POST /deployments/d/create_flow_run")
    assert made["state"]["state_details"] == {"scheduled_time": due}
    assert (made["parameters"], made["idempotency_key"]) == (gone["parameters"], "due gone")


def test_a_due_run_keeps_its_schedule_though_prefect_lost_the_parameter() -> None:
    made = {"auto_scheduled": True, "estimated_start_time_delta": 9.0, "created_by": {"type": "SCHEDULE", "id": "id-x"}}
    runs = [
        made | {"parameters": {}},
        made | {"parameters": {"request": {"schedule": "y"}}},
        made | {"parameters": {}, "created_by": {"type": "SCHEDULE", "id": "id-gone"}},
        made | {"parameters": {"request": {"tasks": ["mood"]}}},  # asked for by name: it is no schedule's
        made | {"parameters": {}, "estimated_start_time_delta": -9.0},  # Prefect makes this one again itself
        made | {"parameters": {}, "auto_scheduled": False},  # a person's, which no deployment removes
    ]
    with listening(Prefect({"POST /flow_runs/filter": lambda _: (200, runs)})) as prefect:
        due = list_due_runs(prefect.url, {"id": "d", "schedules": [schedule("x")]})
    assert [run["parameters"]["request"].get("schedule", "none") for run in due] == ["x", "y", None, "none"]


@pytest.mark.parametrize(
    ("maker", "slug"),
    [
        ({"type": "SCHEDULE", "id": "id-x"}, "x"),
        ({"type": "SCHEDULE", "id": "id-gone"}, None),
        ({"type": "USER", "id": "id-x"}, None),
        (None, None),
    ],
)
def test_a_run_is_of_the_schedule_that_made_it(maker: dict[str, str] | None, slug: str | None) -> None:
    answers = {
        "GET /flow_runs/r": lambda _: (200, {"created_by": maker, "deployment_id": "d"}),
        "GET /deployments/d": lambda _: (200, {"schedules": [schedule("x")]}),
    }
    with listening(Prefect(answers)) as prefect:
        assert find_slug(prefect.url, "r") == slug
        assert find_slug(prefect.url, "gone") is None
