"""Deployments and flow runs on a real Prefect server, from the cron line to the promoted prompt."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from flows.local.orphaned_runs import end_orphaned_runs
from flows.local.process import spawn, stop
from flows.requests import IngestRequest, NightlyRequest, PromoteRequest, TuneRequest
from flows.server.api import call
from flows.server.deploy import FLOWS, deploy, entrypoint_of
from flows.server.schedules import find_slug
from flows.server.trigger import Finished, LogLine, follow, trigger
from ptpipeline.errors import NotFound, ServiceUnavailable, SettingsError
from ptpipeline.records.base import Record
from ptpipeline.settings import load_settings
from ptpipeline.task.folder import load_task, task_files
from ptpipeline.task.task import Task
from tests.e2e.conftest import Project

pytestmark = pytest.mark.servers

CHECKOUT = Path(__file__).parents[2]


def the_nightly(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = call("GET", f"{project.prefect}/deployments/name/nightly/ptp-nightly")
    return found


def scheduled_runs(project: Project, deployment: dict[str, Any]) -> list[dict[str, Any]]:
    query = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    found: list[dict[str, Any]] = call("POST", f"{project.prefect}/flow_runs/filter", query)
    return found


def followed(project: Project, run: str) -> tuple[list[LogLine], Finished]:
    events = list(follow(project.prefect, run))
    last = events.pop()
    if not isinstance(last, Finished):
        raise TypeError(f"the run ended with {last!r}")
    return [event for event in events if isinstance(event, LogLine)], last


@pytest.fixture(scope="module")
def shipped(project: Project) -> None:
    """The deployments of the shipped tasks on the server."""
    tasks = CHECKOUT / "tasks"
    deploy(load_settings().model_copy(update={"tasks": tasks}), [load_task(path) for path in task_files(tasks)])


@pytest.fixture(scope="module")
def task(project: Project) -> Task:
    return load_task(project.folder / "tasks" / "fruit.yaml")


class Redeployed(NamedTuple):
    """The nightly deployment as somebody left it before the project's own were deployed, and right behind that."""

    before: dict[str, Any]
    after: dict[str, Any]


@pytest.fixture(scope="module")
def deployed(project: Project, shipped: None, task: Task) -> Redeployed:
    """The project's own deployments, over the shipped ones; somebody had paused the nightly one and its schedule."""
    before = the_nightly(project)
    url = f"{project.prefect}/deployments/{before['id']}"
    call("PATCH", f"{url}/schedules/{before['schedules'][0]['id']}", {"active": False})
    call("POST", f"{url}/pause_deployment")
    deploy(load_settings(), [task])
    after = the_nightly(project)
    call("POST", f"{url}/resume_deployment")
    return Redeployed(before, after)


def inserted_runs(project: Project) -> list[dict[str, Any]]:
    """The runs of the next nights, as soon as the scheduler has made some."""
    deadline = time.monotonic() + 60
    while not (runs := scheduled_runs(project, the_nightly(project))) and time.monotonic() < deadline:
        time.sleep(0.5)
    return runs


def test_the_scheduler_inserts_a_run_for_the_shipped_cron(project: Project, shipped: None) -> None:
    runs = inserted_runs(project)
    assert {run["expected_start_time"][11:19] for run in runs} == {"17:00:00"}  # 02:00 in Seoul
    assert runs[0]["parameters"] == {"request": {"schedule": "0-2-x-x-x-asia-seoul"}}


def test_a_night_of_a_schedule_that_was_paused_and_resumed_is_of_its_tasks_alone(
    project: Project, shipped: None
) -> None:
    deployment = the_nightly(project)
    url = f"{project.prefect}/deployments/{deployment['id']}/schedules/{deployment['schedules'][0]['id']}"
    call("PATCH", url, {"active": False})  # as Prefect's page does; it removes the runs, and the schedule's parameters
    call("PATCH", url, {"active": True})
    assert {find_slug(project.prefect, run["id"]) for run in inserted_runs(project)} == {"0-2-x-x-x-asia-seoul"}


def test_deploying_again_keeps_what_somebody_paused(deployed: Redeployed) -> None:
    before, after = deployed
    assert (before["paused"], before["schedules"][0]["active"]) == (False, True)
    assert (after["id"], after["paused"]) == (before["id"], True)
    assert [(found["id"], found["active"]) for found in after["schedules"]] == [(before["schedules"][0]["id"], False)]


def test_a_schedule_that_no_task_has_any_more_goes(project: Project, deployed: Redeployed, task: Task) -> None:
    deploy(load_settings(), [task.model_copy(update={"schedule": None})])
    assert the_nightly(project)["schedules"] == []


def test_up_gives_every_deployment_its_new_entry_point_and_its_schedules(
    project: Project, deployed: Redeployed
) -> None:
    urls = [f"{project.prefect}/deployments/name/{name}/ptp-{name}" for name in FLOWS]
    before = [call("GET", url) for url in urls]
    for name, deployment in zip(FLOWS, before, strict=True):  # as an older version, with its flows elsewhere, left it
        call("PATCH", f"{project.prefect}/deployments/{deployment['id']}", {"entrypoint": f"flows.old.{name}"})
    assert [call("GET", url)["entrypoint"] for url in urls] == [f"flows.old.{name}" for name in FLOWS]
    subprocess.run([sys.executable, "-m", "flows.cli", "up"], env=dict(os.environ), capture_output=True, check=True)
    after = [call("GET", url) for url in urls]
    assert [found["entrypoint"] for found in after] == [entrypoint_of(name) for name in FLOWS]
    assert [found["id"] for found in after] == [found["id"] for found in before]
    assert [found["slug"] for found in the_nightly(project)["schedules"]] == ["0-2-x-x-x-asia-seoul"]


def test_a_plain_post_runs_the_nightly_flow_to_a_promoted_prompt(project: Project, deployed: Redeployed) -> None:
    deployment = the_nightly(project)
    url = f"{project.prefect}/deployments/{deployment['id']}/create_flow_run"
    user, _, password = os.environ["PREFECT_API_AUTH_STRING"].partition(":")
    body = {"parameters": {"request": {"reason": "by hand"}}}
    while (answer := httpx.post(url, json=body, auth=(user, password))).status_code == 503:
        time.sleep(1)  # its database was busy: try again, it says
    assert answer.status_code == 201
    lines, end = followed(project, answer.json()["id"])
    assert (end.state, end.message) == ("COMPLETED", "fruit: promoted")
    assert [(row["task"], row["status"], row["version"]) for row in end.rows] == [("fruit", "promoted", 1)]
    assert any(line.logger.startswith("ptpipeline.") and "by hand" in line.message for line in lines)
    steps = call("POST", f"{project.prefect}/task_runs/filter", {"flow_runs": {"id": {"any_": [answer.json()["id"]]}}})
    assert {step["name"] for step in steps} == {
        "ingest fruit",
        "plan fruit",
        "train tiny (1 task)",
        "evaluate fruit",
        "gate fruit",
        "register fruit",
        "promote fruit",
    }


@pytest.mark.soak  # tests/flows/stages/test_chain.py asks the same of the stages
def test_a_second_night_trains_nothing_and_says_why(project: Project, deployed: Redeployed) -> None:
    lines, end = followed(project, trigger(project.prefect, "nightly", NightlyRequest()))
    assert (end.state, end.message) == ("COMPLETED", "fruit: unchanged"), [line.message for line in lines]
    assert "nothing was trained" in end.rows[0]["reason"]


@pytest.fixture(scope="module")
def promoted_twice(project: Project, deployed: Redeployed) -> list[str]:
    """The runs of one request to promote a version that is not there, which was sent twice with one key."""
    request = PromoteRequest(task="fruit", version=99, reason="looked at")
    return [trigger(project.prefect, "promote", request, "key") for _ in range(2)]


def test_promoting_a_version_that_is_not_there_fails_with_a_sentence(
    project: Project, promoted_twice: list[str]
) -> None:
    _, end = followed(project, promoted_twice[0])
    assert end.state == "FAILED"
    assert "99" in end.message


def test_an_idempotency_key_starts_one_run(promoted_twice: list[str]) -> None:
    first, second = promoted_twice
    assert first == second


def test_a_run_without_a_process_is_ended(project: Project, deployed: Redeployed, tmp_path: Path) -> None:
    deployment = call("GET", f"{project.prefect}/deployments/name/ingest/ptp-ingest")  # which nothing starts again
    url = f"{project.prefect}/deployments/{deployment['id']}/create_flow_run"
    lost, living = (call("POST", url, {"state": {"type": "RUNNING"}})["id"] for _ in range(2))
    process = spawn(
        ["sleep", "60"], {**os.environ, "PTP_HOME": str(project.home), "PREFECT__FLOW_RUN_ID": living}, tmp_path / "log"
    )
    ended = end_orphaned_runs(project.home, project.prefect)
    stop(process)
    assert lost in ended
    assert living not in ended
    assert followed(project, lost)[1].state == "CRASHED"
    assert living in end_orphaned_runs(project.home, project.prefect)


class _Stray(Record):
    stray: int = 1


def test_unknown_fields_are_refused_before_any_run(project: Project, deployed: Redeployed) -> None:
    with pytest.raises(SettingsError, match=r"Additional properties are not allowed \('stray' was unexpected\)"):
        trigger(project.prefect, "nightly", _Stray())


def test_unknown_parameters_are_refused_before_any_run(project: Project, deployed: Redeployed) -> None:
    url = f"{project.prefect}/deployments/{the_nightly(project)['id']}/create_flow_run"
    with pytest.raises(SettingsError, match=r"Additional properties are not allowed \('stray' was unexpected\)"):
        call("POST", url, {"parameters": {"stray": 1}})


@pytest.mark.parametrize(
    ("flow", "request_"),
    [
        ("nightly", NightlyRequest(tasks=["fruit", "friut"])),
        ("tune", TuneRequest(tasks=["friut"])),
        ("ingest", IngestRequest(tasks=["friut"])),
        ("promote", PromoteRequest(task="friut", version=1, reason="good")),
    ],
)
def test_a_misspelt_task_is_refused_before_any_run(
    project: Project, deployed: Redeployed, flow: str, request_: Record
) -> None:
    runs = call("POST", f"{project.prefect}/flow_runs/count", {})
    with pytest.raises(SettingsError, match=r"'friut' is not one of \['fruit'\].*`ptp up` makes a new task known"):
        trigger(project.prefect, flow, request_)
    assert call("POST", f"{project.prefect}/flow_runs/count", {}) == runs


def test_a_flow_that_is_not_deployed_is_named(project: Project, deployed: Redeployed) -> None:
    with pytest.raises(NotFound, match="no deployment train/ptp-train: run `ptp up`"):
        trigger(project.prefect, "train", NightlyRequest())


def test_an_unreachable_server_is_one_sentence() -> None:
    with pytest.raises(
        ServiceUnavailable, match=r"Prefect at http://127\.0\.0\.1:9 does not answer \(ConnectError\); is it up\?"
    ):
        trigger("http://127.0.0.1:9/api", "nightly", NightlyRequest())


def test_the_client_side_imports_no_prefect() -> None:
    code = (
        "import sys, flows.server.trigger, flows.server.deploy, flows.local.stack; "
        "sys.exit('prefect' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0


def test_every_flow_has_its_deployment(project: Project, deployed: Redeployed) -> None:
    for name in FLOWS:
        found = call("GET", f"{project.prefect}/deployments/name/{name}/ptp-{name}")
        assert found["entrypoint"] == entrypoint_of(name)
        assert len(found["description"]) > 40
