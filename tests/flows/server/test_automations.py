"""The automations on a real Prefect server: what falls silent has crashed, and a crashed night is started again."""

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from benchmarks.fixtures.s3_server import free_ports
from flows.local.keys import load_keys
from flows.local.process import spawn, stop
from flows.local.servers import StackConfig, define_server
from flows.server.api import call
from flows.server.automations import SILENT_SECONDS, install_automations
from flows.server.deploy import read_deployments
from flows.steps import LEFT
from ptpipeline.errors import NotFound
from tests.waiting import wait_for

pytestmark = pytest.mark.servers

SHORT = 10.0  # seconds of silence, the least that Prefect takes; with the real ones the test would last two minutes


class Served(NamedTuple):
    """A Prefect server with the deployment of the nightly flow."""

    api: str
    deployment: str

    def start(self, state: str, **request: Any) -> str:
        body = {"state": {"type": state}, "parameters": {"request": request} if request else {}}
        return str(call("POST", f"{self.api}/deployments/{self.deployment}/create_flow_run", body)["id"])

    def state(self, run: str) -> str:
        return str(call("GET", f"{self.api}/flow_runs/{run}")["state_type"])

    def runs_after(self, run: str) -> list[dict[str, Any]]:
        query = {"deployments": {"id": {"any_": [self.deployment]}}}
        found = call("POST", f"{self.api}/flow_runs/filter", query)
        return [each for each in found if each["parameters"].get("request", {}).get("night") == run]

    def beat(self, run: str, behind: timedelta = timedelta(0), event: str = "prefect.flow-run.heartbeat") -> None:
        """Send a heartbeat as Prefect's engine does on a machine whose clock is so far behind, or another event."""
        sent = {
            "id": str(uuid.uuid4()),
            "occurred": (datetime.now(UTC) - behind).isoformat(),
            "event": event,
            "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
            "related": [
                {
                    "prefect.resource.id": f"prefect.deployment.{self.deployment}",
                    "prefect.resource.role": "deployment",
                }
            ],
        }
        call("POST", f"{self.api}/events", [sent])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("prefect")
    config = StackConfig(home, {"prefect": free_ports(1)[0], "storage": 0, "mlflow": 0}, load_keys(home))
    server = define_server("prefect", config)
    environment = server.environment | {"PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT2S"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_AUTH_STRING", config.credential("prefect"))
        process = spawn(server.command, environment, home / "log", config.ports["prefect"], server.folder)
        try:
            wait_for(lambda: server.ready(process), 300)
            api = config.settings()["prefect"]
            with pytest.raises(NotFound, match="deploy the flows first"):
                install_automations(api, read_deployments(api))
            flow = call("POST", f"{api}/flows/", {"name": "nightly"})["id"]
            made = call("POST", f"{api}/deployments/", {"name": "ptp-nightly", "flow_id": flow})
            yield Served(api, str(made["id"]))
        finally:
            stop(process)


@pytest.fixture(scope="module")
def installed(served: Served) -> dict[str, dict[str, Any]]:
    """The automations by name, installed twice, with a shorter patience."""
    assert len(install_automations(served.api, read_deployments(served.api))) == 2
    assert install_automations(served.api, read_deployments(served.api)) == []
    found = {one["name"]: one for one in call("POST", f"{served.api}/automations/filter", {})}
    notice = found["ptp: a run without a heartbeat has crashed"]
    assert notice["trigger"]["within"] == SILENT_SECONDS
    trigger = notice["trigger"] | {"within": SHORT}
    kept = {name: notice[name] for name in ("name", "description", "enabled", "actions")}
    call("PUT", f"{served.api}/automations/{notice['id']}", {**kept, "trigger": trigger})
    return found


def test_a_silent_night_has_crashed_and_starts_again(served: Served, installed: dict[str, dict[str, Any]]) -> None:
    run = served.start("RUNNING", tasks=["mood"], schedule="0-2", resumes=1)
    served.beat(run)
    wait_for(lambda: served.state(run) == "CRASHED", 6 * SHORT)
    [again] = wait_for(lambda: served.runs_after(run), 6 * SHORT)
    request = {"tasks": ["mood"], "schedule": "0-2", "resumes": 2, "night": run, "cancelled": False}
    assert (again["parameters"]["request"], again["state_type"]) == (request, "SCHEDULED")


def test_heartbeats_of_a_clock_that_is_behind_are_silence(served: Served, installed: dict[str, dict[str, Any]]) -> None:
    """So Prefect reads them; `flows.clock` keeps a run from beginning on such a machine."""
    run = served.start("RUNNING")
    deadline = time.monotonic() + 6 * SHORT
    while served.state(run) == "RUNNING" and time.monotonic() < deadline:
        served.beat(run, timedelta(hours=1))
        time.sleep(1)
    assert served.state(run) == "CRASHED"


@pytest.mark.parametrize("before", ["CANCELLING", "PAUSED"])
def test_the_night_behind_one_that_a_person_stopped_knows_it(
    served: Served, installed: dict[str, Any], before: str
) -> None:
    run = served.start("RUNNING")
    for state in (before, "CRASHED"):  # as a run that is told to end in its training
        call("POST", f"{served.api}/flow_runs/{run}/set_state", {"state": {"type": state}, "force": True})
    [again] = wait_for(lambda: served.runs_after(run), 6 * SHORT)
    assert again["parameters"]["request"]["cancelled"] is True


def test_a_night_that_ended_is_left_alone(served: Served, installed: dict[str, dict[str, Any]]) -> None:
    run = served.start("RUNNING")
    served.beat(run)
    state = {"type": "COMPLETED", "name": "Gate failed"}  # a name of our own: the event is called by it
    call("POST", f"{served.api}/flow_runs/{run}/set_state", {"state": state})
    time.sleep(1.5 * SHORT)
    assert served.state(run) == "COMPLETED"
    assert served.runs_after(run) == []


def test_a_night_that_said_that_it_leaves_stays_suspended(served: Served, installed: dict[str, dict[str, Any]]) -> None:
    run = served.start("RUNNING")
    call("POST", f"{served.api}/flow_runs/{run}/set_state", {"state": {"type": "PAUSED", "name": "Suspended"}})
    served.beat(run)  # until the step ends
    time.sleep(1)  # events that arrive at once are read in any order
    served.beat(run, event=LEFT)
    time.sleep(1.5 * SHORT)
    assert served.state(run) == "PAUSED"
    assert served.runs_after(run) == []


def test_an_automation_that_differs_is_brought_back(served: Served, installed: dict[str, dict[str, Any]]) -> None:
    deployments = read_deployments(served.api)
    assert install_automations(served.api, deployments) == ["ptp: a run without a heartbeat has crashed"]
    assert install_automations(served.api, deployments) == []
