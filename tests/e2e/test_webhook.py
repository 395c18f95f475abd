"""An edit in MLflow wakes the reconcile through a signed event and a real Prefect run."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from mlflow import MlflowClient

from benchmarks.fixtures.s3_server import free_ports
from flows.requests import NightlyRequest
from flows.server.deploy import deploy
from flows.server.trigger import trigger
from ptpipeline.settings import load_settings
from ptpipeline.task.folder import sound_tasks
from tests.e2e.conftest import Project
from tests.e2e.test_flows import followed

pytestmark = pytest.mark.servers


@pytest.fixture
def listening(project: Project) -> Iterator[None]:
    """`ptp webhook` at work on a free port."""
    (port,) = free_ports(1)
    environment = os.environ | {"PTP_WEBHOOK_SECRET": "s" * 32}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "webhook", "--port", str(port)], env=environment, cwd=project.folder
    )
    deadline = time.monotonic() + 60
    try:
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def test_an_alias_deleted_in_mlflow_is_healed(project: Project, listening: None) -> None:
    settings = load_settings()
    deploy(settings, sound_tasks(settings.tasks)[0])
    client = MlflowClient(tracking_uri=project.stack.settings["mlflow"], registry_uri=project.stack.settings["mlflow"])
    if not client.search_registered_models("name = 'fruit'"):  # no test before this one ran a night
        followed(project, trigger(project.prefect, "nightly", NightlyRequest()))
    before = client.get_registered_model("fruit").aliases["production"]
    client.delete_registered_model_alias("fruit", "production")
    deadline = time.monotonic() + 120
    while client.get_registered_model("fruit").aliases.get("production") != before:
        assert time.monotonic() < deadline, "no reconcile healed it"
        time.sleep(1)
