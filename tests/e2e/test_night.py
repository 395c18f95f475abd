"""A night on real servers whose worker dies, whose Prefect server goes away, that is suspended, and deployed anew."""

import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import stamina

from benchmarks.fixtures.s3_server import free_ports
from flows.local.keys import load_keys
from flows.local.process import Process, spawn, stop
from flows.local.servers import StackConfig, define_server
from flows.requests import NightlyRequest
from flows.server.api import call
from flows.server.deploy import deploy
from flows.server.environment import POOL, client_environment
from flows.server.trigger import trigger
from flows.steps import LEFT
from ptpipeline.errors import ServiceUnavailable
from ptpipeline.settings import load_settings
from ptpipeline.task.folder import load_task
from ptpipeline.task.task import Schedule, Task
from registry.registry import open_registry
from tests.e2e.conftest import make_long, write_project
from tests.e2e.test_down import train_undisturbed
from tests.waiting import wait_for

pytestmark = [pytest.mark.servers, pytest.mark.soak, pytest.mark.timeout(3600)]

NOTICED_SECONDS = 120.0
PATIENCE = 600.0  # with a machine that is busy
STEPS = 6000  # it has to train still when its log of step 20 is seen, some seconds later
LONG = make_long(STEPS, 1000)


class Factory:
    """A project in a folder, with a Prefect server and workers of its own; store and ledger are files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / ".ptp"
        self.home.mkdir(mode=0o700)
        self.config = StackConfig(
            self.home, {"prefect": free_ports(1)[0], "storage": 0, "mlflow": 0}, load_keys(self.home)
        )
        self.server = define_server("prefect", self.config)
        self.prefect = self.config.settings()["prefect"]
        self.running: dict[str, Process] = {}

    def start_server(self) -> None:
        log, port = self.home / "prefect.log", self.config.ports["prefect"]
        process = spawn(self.server.command, self.server.environment, log, port, self.server.folder)
        self.running["server"] = process
        wait_for(lambda: self.server.ready(process), PATIENCE)

    def start_worker(self, name: str) -> None:
        environment = client_environment(self.home, self.prefect) | {
            "PREFECT_API_AUTH_STRING": self.config.credential("prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PTP_CHECKPOINT_SECONDS": "1",
        }
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
        self.running[name] = spawn([*command, "--name", name], environment, self.home / f"{name}.log")

    def kill(self, name: str) -> None:
        """kill -9 the process and all below it, as if its machine had lost its power."""
        root = psutil.Process(self.running.pop(name).pid)
        for process in [root, *root.children(recursive=True)]:
            process.kill()

    def stop(self, name: str) -> None:
        stop(self.running.pop(name))

    @stamina.retry(on=ServiceUnavailable, attempts=None, timeout=PATIENCE)
    def ask(self, verb: str, path: str, body: Any = None) -> Any:
        """Ask the server, which a busy machine lets answer late."""
        return call(verb, f"{self.prefect}/{path}", body)

    def state_of(self, run: str) -> str:
        return str(self.ask("GET", f"flow_runs/{run}")["state_type"])

    def told(self, run: str, event: str) -> bool:
        """Whether the run sent that event. Nothing in ptpipeline asks for events, so `call` knows no such answer."""
        query = {"filter": {"event": {"name": [event]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}}
        login = httpx.BasicAuth(*self.config.credential("prefect").split(":", 1))
        answer = httpx.post(f"{self.prefect}/events/filter", json=query, auth=login, timeout=60, trust_env=False)
        return bool(answer.raise_for_status().json()["events"])

    def log_of(self, run: str) -> str:
        """The begin of what a run says, and of the gangs that a night gave away because it saw two workers."""
        gangs = self.ask("POST", "flow_runs/filter", {"flows": {"name": {"any_": ["gang"]}}})
        runs = [run, *(gang["id"] for gang in gangs)]
        query = {"logs": {"flow_run_id": {"any_": runs}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return "\n".join(line["message"] for line in self.ask("POST", "logs/filter", query))

    def nightly(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", "deployments/name/nightly/ptp-nightly")
        return found

    def runs(self, **filters: Any) -> list[dict[str, Any]]:
        query = {"deployments": {"id": {"any_": [self.nightly()["id"]]}}, "flow_runs": filters}
        found: list[dict[str, Any]] = self.ask("POST", "flow_runs/filter", query)
        return found

    def resumed(self) -> list[str]:
        return [run["id"] for run in self.runs() if (run["parameters"].get("request") or {}).get("resumes")]

    def scheduled(self) -> list[dict[str, Any]]:
        return self.runs(state={"type": {"any_": ["SCHEDULED"]}})

    def schedules(self) -> list[tuple[str, bool]]:
        return [(found["slug"], found["active"]) for found in self.nightly()["schedules"]]


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    folder = tmp_path_factory.mktemp("factory")
    write_project(folder)
    (folder / "tasks" / "orchard.yaml").write_text(LONG.format(rows=folder / "fruit.csv"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [name for name in os.environ if name.startswith(("PTP_", "AWS_", "PREFECT_", "MLFLOW_"))]:
            patch.delenv(name)
        started = Factory(folder)
        patch.setenv("PTP_HOME", str(started.home))
        patch.setenv("PTP_PREFECT", started.prefect)
        patch.setenv("PREFECT_API_AUTH_STRING", started.config.credential("prefect"))
        try:
            started.start_server()
            started.start_worker("first")  # it makes the pool
            wait_for(lambda: started.ask("POST", "work_pools/filter", {}), PATIENCE)
            deploy(load_settings(), [load_task(folder / "tasks" / "fruit.yaml")])
            yield started
        finally:
            for name in sorted(started.running, reverse=True):
                started.stop(name)


@pytest.fixture
def task(factory: Factory) -> Task:
    return load_task(factory.folder / "tasks" / "fruit.yaml")


# ---------------------------------------------------------------- a worker that dies


def test_a_night_whose_machine_died_goes_on_from_its_checkpoint_to_the_same_bits(
    factory: Factory, tmp_path: Path
) -> None:
    run = trigger(factory.prefect, "nightly", NightlyRequest(tasks=["orchard"]))
    wait_for(lambda: "orchard: step 20/" in factory.log_of(run), PATIENCE)
    factory.kill("first")
    died = time.monotonic()
    factory.start_worker("second")
    wait_for(lambda: factory.state_of(run) == "CRASHED", PATIENCE)
    assert time.monotonic() - died < NOTICED_SECONDS
    [again] = wait_for(factory.resumed, PATIENCE)
    wait_for(lambda: "resumes from a checkpoint" in factory.log_of(again), PATIENCE)
    factory.kill("server")  # and now the server goes away, in the middle of the training
    time.sleep(30)
    factory.start_server()
    wait_for(lambda: factory.state_of(again) == "COMPLETED", PATIENCE)
    assert factory.resumed() == [again]
    tuned = open_registry(load_settings()).ledger.last_tuned("orchard")
    assert tuned
    assert tuned.digest == train_undisturbed(factory.folder, factory.home, tmp_path)


def test_a_slot_that_was_held_when_the_server_died_is_given_back(factory: Factory) -> None:
    alarm = factory.ask("GET", "deployments/name/alarm/ptp-alarm")
    limit = f"v2/concurrency_limits/{alarm['global_concurrency_limit']['id']}"
    later = {
        "type": "SCHEDULED",
        "state_details": {"scheduled_time": (datetime.now(UTC) + timedelta(days=1)).isoformat()},
    }
    run = factory.ask("POST", f"deployments/{alarm['id']}/create_flow_run", {"state": later})[
        "id"
    ]  # no worker takes it
    factory.ask("POST", f"flow_runs/{run}/set_state", {"state": {"type": "PENDING"}})
    assert factory.ask("GET", limit)["active_slots"] == 1
    factory.kill("server")
    factory.start_server()
    assert factory.ask("GET", limit)["active_slots"] == 1
    wait_for(lambda: factory.ask("GET", limit)["active_slots"] == 0, PATIENCE, every=5)


# ---------------------------------------------------------------- a night that a person suspends


def test_a_suspended_night_waits_until_somebody_resumes_it(factory: Factory) -> None:
    resumed = factory.resumed()
    run = trigger(factory.prefect, "nightly", NightlyRequest(tasks=["fruit"]))
    wait_for(lambda: factory.state_of(run) == "RUNNING", PATIENCE)
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    details = {"pause_reschedule": True, "pause_timeout": until}  # as Prefect's page suspends
    state = {"type": "PAUSED", "name": "Suspended", "state_details": details}
    factory.ask("POST", f"flow_runs/{run}/set_state", {"state": state})
    wait_for(lambda: factory.told(run, LEFT), PATIENCE)
    time.sleep(NOTICED_SECONDS)
    assert (factory.state_of(run), factory.resumed()) == ("PAUSED", resumed)
    factory.ask("POST", f"flow_runs/{run}/resume", {})
    wait_for(lambda: factory.state_of(run) == "COMPLETED", PATIENCE)
    assert factory.resumed() == resumed


# ---------------------------------------------------------------- schedules


def on(task: Task, cron: str, timezone: str = "Asia/Seoul") -> Task:
    return task.model_copy(update={"schedule": Schedule(cron=cron, timezone=timezone)})


def test_a_changed_schedule_stays_paused_and_leaves_no_run_of_the_old_one(factory: Factory, task: Task) -> None:
    wait_for(factory.scheduled, PATIENCE)
    deploy(load_settings(), [on(task, "0 3 * * *")])
    assert factory.schedules() == [("0-3-x-x-x-asia-seoul", True)]
    assert wait_for(lambda: {run["expected_start_time"][11:16] for run in factory.scheduled()}, PATIENCE) == {"18:00"}
    deployment = factory.nightly()
    schedule = f"deployments/{deployment['id']}/schedules/{deployment['schedules'][0]['id']}"
    factory.ask("PATCH", schedule, {"active": False})
    deploy(load_settings(), [on(task, "0 4 * * *")])
    assert factory.schedules() == [("0-4-x-x-x-asia-seoul", False)]
