"""Schedules: slugs, grouping, and the rendered deployments."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.nightly import narrow
from flows.server.deploy import FLOWS, render
from flows.server.schedules import distinct_schedules, scheduled_under, slug_of
from ptpipeline.errors import NotFound
from ptpipeline.task.folder import load_task, task_files
from ptpipeline.task.task import Schedule, Task

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


def test_a_slug_is_a_plain_name() -> None:
    assert (
        slug_of(Schedule(cron="*/5 1,3 * * 1-5", timezone="America/New_York"))
        == "xper5-1and3-x-x-1to5-america-new-york"
    )


def test_tasks_with_one_schedule_share_a_slug(shipped: list[Task]) -> None:
    assert list(distinct_schedules(shipped)) == ["0-2-x-x-x-asia-seoul"]


def test_a_schedule_takes_only_its_own_tasks(shipped: list[Task]) -> None:
    tasks = [shipped[0], on(shipped[1], "0 5 * * *", "UTC")]
    assert scheduled_under(tasks, "0-5-x-x-x-utc") == [tasks[1]]


def test_a_schedule_no_task_has_is_refused_by_name(shipped: list[Task]) -> None:
    with pytest.raises(NotFound, match="no task has the schedule 'gone'; there are 0-2-x-x-x-asia-seoul: deploy again"):
        narrow(shipped, "gone")


def test_the_shipped_deployments_are_the_rendered_ones(shipped: list[Task]) -> None:
    assert (PROJECT / "deploy" / "prefect.yaml").read_text() == render(shipped)


def test_every_flow_is_deployed_by_module_path(shipped: list[Task]) -> None:
    text = render(shipped)
    assert [f"entrypoint: flows.{name}.{name}" in text for name in FLOWS] == [True] * 6
    assert "active:" not in text
