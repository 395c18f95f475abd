"""`ptp down` in the middle of a training, on the real stack: it ends behind a checkpoint, and the next one goes on."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.local.process import FLOW_RUN, find_marked
from flows.local.servers import mark_prefix
from flows.local.stack import down, up
from flows.requests import NightlyRequest
from flows.server.api import call
from flows.server.trigger import trigger
from ptpipeline.settings import load_settings
from ptpipeline.storage import open_store
from registry.ledger.ledger import Ledger
from registry.registry import open_registry
from tests.e2e.conftest import Project, another_task, make_long
from tests.e2e.test_flows import followed
from tests.waiting import wait_for

pytestmark = [pytest.mark.servers, pytest.mark.soak, pytest.mark.timeout(1800)]

ENDED_SECONDS = 10.0
PATIENCE = 600.0  # with a machine that is busy
STEPS = 3000  # the log that tells of step 20 comes two seconds later
LONG = make_long(STEPS, STEPS // 2)


@pytest.fixture
def orchard(project: Project) -> Iterator[None]:
    """A task that trains long enough to be ended on the way."""
    with another_task(project, "orchard", LONG.format(rows=project.folder / "fruit.csv")):
        yield


def log_of(project: Project, run: str) -> str:
    query = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
    return "\n".join(line["message"] for line in call("POST", f"{project.prefect}/logs/filter", query))


def nights_of_orchard(project: Project) -> list[str]:
    deployment = call("GET", f"{project.prefect}/deployments/name/nightly/ptp-nightly")["id"]
    runs = call("POST", f"{project.prefect}/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})
    return [run["id"] for run in runs if (run["parameters"].get("request") or {}).get("tasks") == ["orchard"]]


def processes_of(project: Project) -> list[psutil.Process]:
    """Every process that works in the stack's home: servers, worker, runs, and what they started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("PTP_HOME") == str(project.home):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def process_of(project: Project, run: str) -> psutil.Process:
    [found] = [process for process in processes_of(project) if process.environ().get(FLOW_RUN) == run][:1]
    return found


def train_undisturbed(project: Path, home: Path, folder: Path) -> str:
    """Train the project's task in another folder, in the compute type of that home; returns the prompt's digest."""
    shutil.copytree(home / "compute", folder / "compute")
    settings = {"PTP_HOME": str(folder), "PTP_STORE": (folder / "store").as_uri(), "PTP_TASKS": "tasks"}
    settings |= {"PTP_LEDGER": f"sqlite:///{folder / 'ledger.db'}"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PTP_", "AWS_"))}
    command = [sys.executable, "-m", "flows.cli", "run", "orchard"]
    done = subprocess.run(command, env=clean | settings, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tuned = Ledger(settings["PTP_LEDGER"]).last_tuned("orchard")
    assert tuned
    return tuned.digest


def test_a_training_that_down_ends_goes_on_to_the_same_bits(project: Project, orchard: None, tmp_path: Path) -> None:
    run = trigger(project.prefect, "nightly", NightlyRequest(tasks=["orchard"]))
    wait_for(lambda: "orchard: step 20/" in log_of(project, run), PATIENCE)
    training, ended = process_of(project, run), list[float]()
    watching = threading.Thread(target=lambda: (training.wait(60), ended.append(time.monotonic())))
    watching.start()
    told = time.monotonic()
    down(project.home)
    watching.join()
    print(
        f"the training ended {ended[0] - told:.1f} s after `ptp down` began, which took {time.monotonic() - told:.1f} s"
    )
    assert ended[0] - told < ENDED_SECONDS
    assert (processes_of(project), find_marked(mark_prefix(project.home))) == ([], [])

    up(project.home)
    settings = load_settings()
    assert len(list(open_store(settings.store, settings.s3_endpoint).keys("checkpoints"))) == 1
    _, end = followed(project, trigger(project.prefect, "nightly", NightlyRequest(tasks=["orchard"])))
    assert end.state == "COMPLETED", end.message
    assert any("resumes from a checkpoint" in log_of(project, each) for each in nights_of_orchard(project))
    ledger = open_registry(settings).ledger
    tuned = ledger.last_tuned("orchard")
    assert tuned
    assert [version.digest for version in ledger.versions("orchard")] == [tuned.digest]
    assert tuned.digest == train_undisturbed(project.folder, project.home, tmp_path)
