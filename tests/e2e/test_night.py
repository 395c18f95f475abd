"""A night on real servers whose worker dies, whose Prefect server goes away, and that is deployed anew."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.local.process import Process, spawn, stop
from flows.local.stack import up
from flows.requests import NightlyRequest
from flows.server.api import call
from flows.server.automations import install_automations
from flows.server.deploy import deploy
from flows.server.environment import POOL, client_environment
from flows.server.trigger import trigger
from ptpipeline.settings import load_settings
from ptpipeline.task.folder import load_task
from ptpipeline.task.task import Schedule, Task
from tests.e2e.conftest import TASK, Project

pytestmark = pytest.mark.servers

NOTICED_SECONDS = 120.0
LONG = TASK.replace("name: fruit", "name: orchard").replace("steps: 12", "steps: 300, patience: 300")
LONG = LONG.replace("eval_every: 6", "eval_every: 150")


@pytest.fixture(scope="module")
def task(project: Project) -> Task:
    return load_task(project.folder / "tasks" / "fruit.yaml")


@pytest.fixture(scope="module")
def orchard(project: Project, task: Task) -> Iterator[str]:
    """A task that trains long enough to be interrupted; the stack's own worker stands aside meanwhile."""
    path = project.folder / "tasks" / "orchard.yaml"
    path.write_text(LONG.format(rows=project.folder / "fruit.csv"))
    deploy(load_settings(), [task])
    stop(project.stack.processes["worker"])
    yield "orchard"
    path.unlink()
    up(project.home)
    deploy(load_settings(), [task])


def start_worker(project: Project, folder: Path, name: str) -> Process:
    environment = client_environment(project.home, project.prefect) | {
        "PREFECT_API_AUTH_STRING": os.environ["PREFECT_API_AUTH_STRING"],
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PTP_CHECKPOINT_SECONDS": "1",
    }
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name]
    return spawn(command, environment, folder / f"{name}.log")


def kill_with_its_runs(worker: Process) -> None:
    """kill -9 the worker and all below it, as if the machine had lost its power."""
    root = psutil.Process(worker.pid)
    for process in [root, *root.children(recursive=True)]:
        process.kill()


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:.0f} s")


def state_of(project: Project, run: str) -> str:
    return str(call("GET", f"{project.prefect}/flow_runs/{run}")["state_type"])


def log_of(project: Project, run: str) -> str:
    query = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
    return "\n".join(line["message"] for line in call("POST", f"{project.prefect}/logs/filter", query))


def nightly(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = call("GET", f"{project.prefect}/deployments/name/nightly/ptp-nightly")
    return found


def resumed(project: Project) -> list[dict[str, Any]]:
    query = {"deployments": {"id": {"any_": [nightly(project)["id"]]}}, "sort": "START_TIME_DESC"}
    runs = call("POST", f"{project.prefect}/flow_runs/filter", query)
    return [run for run in runs if (run["parameters"].get("request") or {}).get("resumes")]


def test_automations_are_installed_once(project: Project, orchard: str) -> None:
    assert install_automations(project.prefect) == []
    names = [found["name"] for found in call("POST", f"{project.prefect}/automations/filter", {})]
    assert sorted(names) == ["ptp: a crashed night goes on", "ptp: a run without a heartbeat has crashed"]


def test_a_night_whose_machine_died_goes_on_from_its_checkpoint(project: Project, orchard: str, tmp_path: Path) -> None:
    first = start_worker(project, tmp_path, "first")
    run = trigger(project.prefect, "nightly", NightlyRequest(tasks=[orchard]))
    wait_for(lambda: f"{orchard}: step 20/" in log_of(project, run), 240)
    kill_with_its_runs(first)
    died = time.monotonic()
    second = start_worker(project, tmp_path, "second")
    try:
        wait_for(lambda: state_of(project, run) == "CRASHED", 2 * NOTICED_SECONDS)
        assert time.monotonic() - died < NOTICED_SECONDS
        again = wait_for(lambda: resumed(project), 60)[0]["id"]
        wait_for(lambda: "resumes from a checkpoint" in log_of(project, again), 240)
        stop(project.stack.processes["prefect"])  # and now the server goes away, in the middle of the training
        time.sleep(30)
        up(project.home)
        wait_for(lambda: state_of(project, again) == "COMPLETED", 300)
        assert [found["id"] for found in resumed(project)] == [again]
    finally:
        stop(second)


# ---------------------------------------------------------------- schedules


def on(task: Task, cron: str) -> Task:
    return task.model_copy(update={"schedule": Schedule(cron=cron, timezone="Asia/Seoul")})


def schedules(project: Project) -> list[tuple[str, bool]]:
    return [(found["slug"], found["active"]) for found in nightly(project)["schedules"]]


def scheduled(project: Project) -> list[dict[str, Any]]:
    state = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    query = {"deployments": {"id": {"any_": [nightly(project)["id"]]}}, "flow_runs": state}
    found: list[dict[str, Any]] = call("POST", f"{project.prefect}/flow_runs/filter", query)
    return found


def test_a_changed_schedule_stays_paused_and_leaves_no_run_of_the_old_one(
    project: Project, orchard: str, task: Task
) -> None:
    deploy(load_settings(), [on(task, "0 2 * * *")])
    wait_for(lambda: scheduled(project), 60)
    deploy(load_settings(), [on(task, "0 3 * * *")])
    assert schedules(project) == [("0-3-x-x-x-asia-seoul", True)]
    hours = wait_for(lambda: {run["expected_start_time"][11:16] for run in scheduled(project)}, 60)
    assert hours == {"18:00"}
    deployment = nightly(project)
    url = f"{project.prefect}/deployments/{deployment['id']}/schedules/{deployment['schedules'][0]['id']}"
    call("PATCH", url, {"active": False})
    deploy(load_settings(), [on(task, "0 4 * * *")])
    assert schedules(project) == [("0-4-x-x-x-asia-seoul", False)]


def test_a_night_that_waits_for_a_worker_survives_a_deployment(project: Project, orchard: str, task: Task) -> None:
    stop(project.stack.processes["worker"])
    minute = datetime.now(UTC) + timedelta(seconds=70)
    schedule = Schedule(cron=f"{minute.minute} {minute.hour} * * *")
    deploy(load_settings(), [task.model_copy(update={"schedule": schedule})])

    def due() -> list[str]:
        now = datetime.now(UTC).isoformat()
        return [run["expected_start_time"][:16] for run in scheduled(project) if run["expected_start_time"] < now]

    before = wait_for(due, 150)
    deploy(load_settings(), [on(task, "0 2 * * *")])
    assert due() == before
