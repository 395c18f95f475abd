"""Nights that something disturbs: MLflow that is away, the clock, another night, a person who cancels."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from mlflow import MlflowClient

from flows.local.process import stop
from flows.local.stack import up
from flows.requests import NightlyRequest, ReconcileRequest
from flows.server.api import call
from flows.server.deploy import deploy
from flows.server.trigger import trigger
from ptpipeline.settings import load_settings
from ptpipeline.task.folder import load_task
from registry.registry import open_registry
from tests.e2e.conftest import Project, another_task
from tests.e2e.test_down import LONG, log_of, process_of
from tests.e2e.test_flows import followed
from tests.waiting import wait_for

pytestmark = [pytest.mark.servers, pytest.mark.soak, pytest.mark.timeout(1800)]

AWAY_SECONDS = 120.0
ENDED_SECONDS = 10.0
PATIENCE = 600.0  # with a machine that is busy


def state_of(project: Project, run: str) -> dict[str, Any]:
    state: dict[str, Any] = call("GET", f"{project.prefect}/flow_runs/{run}")["state"]
    return state


def test_a_night_without_mlflow_promotes_and_a_reconcile_brings_its_page(project: Project) -> None:
    text = (project.folder / "tasks" / "fruit.yaml").read_text().replace("name: fruit", "name: grape")
    with another_task(project, "grape", text):
        stop(project.stack.processes["mlflow"])
        away = time.monotonic()
        lines, end = followed(project, trigger(project.prefect, "nightly", NightlyRequest(tasks=["grape"])))
        assert (end.state, end.message) == ("COMPLETED", "grape: promoted"), [line.message for line in lines]
        assert any("its page lags until a reconcile" in line.message for line in lines)
        head = open_registry(load_settings()).ledger.head("grape", "production")
        assert head
        time.sleep(max(0.0, away + AWAY_SECONDS - time.monotonic()))
        up(project.home)
        mlflow = str(load_settings().mlflow)
        _, end = followed(project, trigger(project.prefect, "reconcile", ReconcileRequest()))
        assert end.state == "COMPLETED", end.message
        shown = MlflowClient(mlflow, mlflow).get_model_version_by_alias("grape", "production")
        assert (shown.version, shown.tags["ptp.digest"]) == (str(head.version), head.digest)


def test_a_late_night_of_a_schedule_is_skipped(project: Project) -> None:
    deploy(load_settings(), [load_task(project.folder / "tasks" / "fruit.yaml")])
    nightly = call("GET", f"{project.prefect}/deployments/name/nightly/ptp-nightly")
    due = datetime.now(UTC) - timedelta(hours=load_settings().late_hours + 1)
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
    body = {"state": state, "parameters": {"request": {"schedule": nightly["schedules"][0]["slug"]}}}
    run = call("POST", f"{project.prefect}/deployments/{nightly['id']}/create_flow_run", body)["id"]
    _, end = followed(project, run)
    assert (end.state, state_of(project, run)["name"]) == ("COMPLETED", "Skipped")
    assert "hours late, more than PTP_LATE_HOURS" in end.message


def test_a_night_waits_for_another_whose_training_a_person_cancels(project: Project) -> None:
    with another_task(project, "orchard", LONG.format(rows=project.folder / "fruit.csv")):
        first = trigger(project.prefect, "nightly", NightlyRequest(tasks=["orchard"]))
        wait_for(lambda: "orchard: step 20/" in log_of(project, first), PATIENCE)
        second = trigger(project.prefect, "nightly", NightlyRequest(tasks=["fruit"]))
        wait_for(lambda: "waits for another night to end" in log_of(project, second), PATIENCE)
        training = process_of(project, first)
        cancelled = time.monotonic()
        state = {"type": "CANCELLING", "name": "Cancelling"}  # as Prefect's page does
        call("POST", f"{project.prefect}/flow_runs/{first}/set_state", {"state": state})
        training.wait(PATIENCE)
        print(f"the training ended {time.monotonic() - cancelled:.1f} s after it was cancelled")
        assert time.monotonic() - cancelled < ENDED_SECONDS
        wait_for(lambda: state_of(project, first)["type"] == "CANCELLED", PATIENCE)
        assert followed(project, second)[1].state == "COMPLETED"
        again = trigger(project.prefect, "nightly", NightlyRequest(tasks=["orchard"]))
        lines, end = followed(project, again)
        assert end.state == "COMPLETED", end.message
        assert any("resumes from a checkpoint" in line.message for line in lines)
