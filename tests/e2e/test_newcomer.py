"""What a newcomer meets: `ptp up` with other settings, a candidate that the gate refuses, an alias moved by hand."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.fixtures.prompts import a_task, published
from flows.local.process import spawn, stop
from flows.local.stack import read
from flows.local.watcher import POLL_SECONDS
from flows.server.api import call
from ptpipeline.settings import load_settings
from registry.registry import open_for_writing
from registry.versions.commit import Cause
from registry.versions.mlflow_edit import seconds_apart
from registry.versions.promotion import promote
from tests.e2e.conftest import TASK, Project

pytestmark = pytest.mark.servers


def ptp(project: Project, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    settings = {**os.environ, **environment}
    return subprocess.run(command, env=settings, cwd=project.folder, capture_output=True, text=True, check=False)


@pytest.fixture
def sour(project: Project) -> Iterator[Path]:
    """Another folder of task files, whose one task no candidate passes; afterwards the stack is as it was."""
    folder = project.folder / "other"
    folder.mkdir()
    (folder / "base_models.yaml").write_text((project.folder / "tasks" / "base_models.yaml").read_text())
    text = TASK.format(rows=project.folder / "fruit.csv").replace("name: fruit", "name: sour")
    (folder / "sour.yaml").write_text(text.replace("minimum: 0.0", "minimum: 1.0").partition("schedule:")[0])
    yield folder
    assert ptp(project, "up").returncode == 0


@pytest.mark.soak  # two starts of the worker and a night
def test_up_with_other_task_files_runs_these_and_a_refused_candidate_is_told_as_such(
    project: Project, sour: Path, tmp_path: Path
) -> None:
    running = {**os.environ, "PTP_HOME": str(project.home), "PREFECT__FLOW_RUN_ID": "a-run"}
    process = spawn(["sleep", "600"], running, tmp_path / "log")
    refused = ptp(project, "up", PTP_TASKS=str(sour))
    stop(process)
    assert refused.returncode == 1
    assert f"PTP_TASKS {project.folder / 'tasks'} -> {sour}" in refused.stderr
    assert "flow run a-run is at work" in refused.stderr

    started = ptp(project, "up", PTP_TASKS=str(sour))
    assert "the worker is started again with other settings" in started.stderr
    assert started.stdout.splitlines()[0] == (
        f"Prefect  {project.prefect.removesuffix('/api')}  runs, schedules and forms"
    )
    assert "by `ptp trigger nightly --task TASK`: sour" in started.stdout

    ran = ptp(project, "trigger", "nightly", "--task", "sour", "--reason", "to see", PTP_TASKS=str(sour))
    assert ran.returncode == 4, ran.stderr
    assert "sour" in ran.stdout
    assert "gate failed" in ran.stdout
    run = ran.stderr.partition("flow run ")[2].split()[0]
    shown = call("GET", f"{project.prefect}/flow_runs/{run}")
    assert (shown["state_type"], shown["state"]["name"]) == ("FAILED", "Gate failed")
    assert shown["name"].startswith("nightly ")
    assert shown["name"].endswith(" sour")
    assert set(shown["tags"]) == {"task:sour", "verdict:failed"}

    [night, *_] = map(json.loads, ptp(project, "nights", "--json").stdout.splitlines())
    assert (night["id"], night["cause"], night["state"]) == (run, "to see", "Gate failed")
    assert [(task["task"], task["verdict"], task["rows"]) for task in night["tasks"]] == [
        ("sour", "failed: minimum", 160)
    ]
    tracked = client(project).search_runs([client(project).get_experiment_by_name("ptpipeline/sour").experiment_id])
    assert tracked[0].data.tags["ptp.flow_run"].endswith(f"/runs/flow-run/{run}")


@pytest.mark.soak  # test_webhook.py heals an alias on the same stack
def test_an_alias_moved_in_mlflow_is_logged_and_judged(project: Project) -> None:
    task, registry = a_task(), open_for_writing(load_settings())
    first = promote(registry, task, published(registry, task, 1), Cause("me", "because"))
    published(registry, task, 2, first.digest)
    mlflow = client(project)
    time.sleep(2 * POLL_SECONDS)  # the watcher has seen how it was
    mlflow.set_registered_model_alias(task.name, "production", "2")
    deadline = time.monotonic() + 30
    while "ptp.refused" not in mlflow.get_model_version(task.name, "2").tags:
        assert time.monotonic() < deadline, (project.home / "logs" / "watcher.log").read_text()
        time.sleep(0.5)
    log = (project.home / "logs" / "watcher.log").read_text()
    assert f"{task.name}: MLflow alias production was set to version 2; a reconcile judges it" in log
    while mlflow.get_model_version_by_alias(task.name, "production").version != "1":  # it is put back after that
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_what_a_person_sets_in_mlflow_is_judged_within_half_a_minute() -> None:
    assert POLL_SECONDS + seconds_apart() + 4 < 30  # four seconds for two looks and what starts them


def client(project: Project) -> MlflowClient:
    stack = read(project.home)
    assert stack is not None
    return MlflowClient(stack.settings["mlflow"], stack.settings["mlflow"])
