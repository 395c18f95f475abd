"""New rows start their task's run, once."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from benchmarks.fixtures.s3_server import running_s3
from flows.requests import WatchSourcesRequest
from flows.server.api import call
from flows.server.deploy import deploy
from flows.server.webhook import Starter, listen_to_stores
from flows.watch_sources import watch_sources
from ptpipeline.settings import load_settings
from ptpipeline.storage.s3 import RequestLimits, make_client
from ptpipeline.task.folder import sound_tasks
from tests.e2e.conftest import Project
from tests.flows.server.test_webhook import NOTIFICATION, serving
from tests.waiting import wait_for

pytestmark = pytest.mark.servers


@pytest.fixture
def watched(project: Project) -> Iterator[None]:
    """The task of the project is watched, and its nightly runs wait; afterwards all is as before."""
    path, rows = project.folder / "tasks" / "fruit.yaml", project.folder / "fruit.csv"
    before = path.read_text(), rows.read_text()
    path.write_text(before[0] + "watch: true\n")
    rows.write_text(before[1] + "apple pear plum that nobody saw,good\n")
    deploy(load_settings(), sound_tasks(load_settings().tasks)[0])
    pool = f"{project.prefect}/work_pools/ptp"
    call("PATCH", pool, {"is_paused": True})
    settings = {
        PREFECT_HOME: project.home / "prefect",
        PREFECT_API_URL: project.prefect,
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with temporary_settings(settings):
        yield
    for run in made(project):
        call("DELETE", f"{project.prefect}/flow_runs/{run['id']}")
    path.write_text(before[0])
    rows.write_text(before[1])
    deploy(load_settings(), sound_tasks(load_settings().tasks)[0])
    call("PATCH", pool, {"is_paused": False})


def started(project: Project) -> list[dict[str, Any]]:
    query = {
        "flows": {"name": {"any_": ["nightly"]}},
        "flow_runs": {"tags": {"all_": ["task:fruit"]}, "state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    found: list[dict[str, Any]] = call("POST", f"{project.prefect}/flow_runs/filter", query)
    return [run for run in found if run["parameters"]["request"].get("reason") == "new data"]


def test_new_rows_start_their_task_once_however_often_they_are_seen(project: Project, watched: None) -> None:
    deployment = call("GET", f"{project.prefect}/deployments/name/watch-sources/ptp-watch-sources")
    assert [schedule["slug"] for schedule in deployment["schedules"]] == ["watch"]
    assert watch_sources() == ["fruit"]
    assert watch_sources() == ["fruit"]
    [run] = started(project)
    assert run["name"] == f"nightly {time.strftime('%Y-%m-%d', time.gmtime())} fruit"
    assert run["parameters"]["request"]["tasks"] == ["fruit"]


@pytest.mark.soak  # test_webhook.py notifies a small listener, and the test above looks without a worker
def test_an_object_put_into_a_bucket_starts_the_task_with_new_rows(
    project: Project, watched: None, tmp_path: Path
) -> None:
    """From the real store's notification to the run of the task, which the worker's look at the sources makes."""
    starter = Starter(project.prefect, "watch-sources", WatchSourcesRequest())
    token = "a token of the test"
    with serving([listen_to_stores(token, starter.start)]) as url:
        (tmp_path / "notification.toml").write_text(NOTIFICATION.format(url=url, token=token))
        with running_s3(tmp_path) as server, pytest.MonkeyPatch.context() as patch:
            for name, value in server.environment.items():
                patch.setenv(name, value)
            client = make_client(server.endpoint, RequestLimits(seconds=20.0, attempts=3))
            client.create_bucket(Bucket="rows")
            client.put_object(Bucket="rows", Key="rows.csv", Body=b"text,label")
        call("PATCH", f"{project.prefect}/work_pools/ptp", {"is_paused": False})
        [run] = wait_for(lambda: made(project), 180, 1.0)
    assert run["parameters"]["request"]["tasks"] == ["fruit"]


def made(project: Project) -> list[dict[str, Any]]:
    """The runs of the task for its new rows, whatever became of them."""
    query = {"flows": {"name": {"any_": ["nightly"]}}, "flow_runs": {"tags": {"all_": ["task:fruit"]}}}
    found: list[dict[str, Any]] = call("POST", f"{project.prefect}/flow_runs/filter", query)
    return [run for run in found if (run["parameters"].get("request") or {}).get("reason") == "new data"]
