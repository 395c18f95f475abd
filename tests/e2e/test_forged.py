"""Whoever may write to the stack's bucket forges what a trainer and a gate read there: neither believes it."""

from pathlib import Path

import pytest

from flows.requests import NightlyRequest
from flows.server.api import call
from flows.server.deploy import deploy
from flows.server.trigger import trigger
from ptpipeline.settings import load_settings
from ptpipeline.storage import ObjectStore, open_store
from ptpipeline.task.folder import load_task
from registry.registry import open_registry
from tests.e2e.conftest import TASK, Project, another_task, make_long
from tests.e2e.test_down import log_of, process_of, train_undisturbed
from tests.e2e.test_flows import followed
from tests.flows.stages import test_altered_results as results
from tests.flows.stages import test_forged_checkpoint as checkpoints
from tests.waiting import wait_for

pytestmark = [pytest.mark.servers, pytest.mark.soak, pytest.mark.timeout(1800)]

PATIENCE = 600.0  # with a machine that is busy
STEPS = 6000  # a minute alone: a checkpoint is due after 20 s
LONG = make_long(STEPS, 500)
SOUR = TASK.replace("name: fruit", "name: sour").replace("minimum: 0.0", "minimum: 1.0")


def bucket() -> ObjectStore:
    settings = load_settings()
    return open_store(settings.store, settings.s3_endpoint)


def night_of(project: Project, task: str) -> tuple[str, str, str]:
    """State, message and log of a night over one task."""
    run = trigger(project.prefect, "nightly", NightlyRequest(tasks=[task]))
    _, end = followed(project, run)
    return end.state, end.message, log_of(project, run)


def test_a_trainer_resumes_from_no_forged_checkpoint(project: Project, tmp_path: Path) -> None:
    with another_task(project, "orchard", LONG.format(rows=project.folder / "fruit.csv")):
        run = trigger(project.prefect, "nightly", NightlyRequest(tasks=["orchard"]))
        store = bucket()
        [key] = wait_for(lambda: list(store.keys("checkpoints")), PATIENCE)
        wait_for(lambda: b".best." in store.read(key).body, PATIENCE)
        process_of(project, run).kill()
        state = {"type": "CANCELLED"}  # else another run would take its place
        call("POST", f"{project.prefect}/flow_runs/{run}/set_state", {"state": state, "force": True})
        stored = store.read(key)
        store.replace(key, checkpoints.forge(stored.body, "hash"), stored.etag)
        state_, message, log = night_of(project, "orchard")
        assert (state_, "has no valid seal" in log) == ("COMPLETED", True), (message, log)
        tuned = open_registry(load_settings()).ledger.last_tuned("orchard")
        assert tuned
        assert tuned.digest == train_undisturbed(project.folder, project.home, tmp_path)


def test_a_gate_believes_no_forged_results(project: Project) -> None:
    text = SOUR.format(rows=project.folder / "fruit.csv")
    with another_task(project, "sour", text):
        assert night_of(project, "sour")[:2] == ("FAILED", "sour: gate failed")
        ledger, store = open_registry(load_settings()).ledger, bucket()
        report = ledger.report_of("sour", ledger.version("sour", 1).digest)
        assert report
        stored = store.read(report.rows_key)
        store.replace(report.rows_key, results.forge(stored.body), stored.etag)
        doctor = project.ptp("doctor", "sour")
        assert (doctor.returncode != 0, report.rows_key in doctor.stdout) == (True, True), doctor
        path = project.folder / "tasks" / "sour.yaml"
        path.write_text(path.read_text().replace("minimum: 1.0", "minimum: 0.999"))  # so that the gate is asked again
        deploy(load_settings(), [load_task(each) for each in sorted(path.parent.glob("[!b]*.yaml"))])
        state, _, log = night_of(project, "sour")
        assert (state, "is measured again" in log) == ("FAILED", True), log
        assert ledger.head("sour", "production") is None
