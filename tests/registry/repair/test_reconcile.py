"""What a reconcile brings to MLflow: verdicts that it shows otherwise, and everything else beside a damaged version."""

import pytest
from mlflow import MlflowClient

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.storage.keys import prompt_prefix
from ptpipeline.task.task import Task
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.reconcile import reconcile

pytestmark = pytest.mark.servers
MENDED = "MLflow's page of version 1 follows the ledger again"


def test_a_verdict_that_a_person_edited_is_named_and_restored(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    published(shown, task, 1, kind="failed")
    client.set_model_version_tag(task.name, "1", "ptp.verdict", "passed")
    client.set_model_version_tag(task.name, "1", "reviewed", "by ann")
    assert [(one.what, one.found) for one in examine(shown, task.name)] == [
        ("MLflow's page of version 1", "verdict passed")
    ]
    assert [action.what for action in reconcile(shown, {}, task.name)] == [MENDED]
    tags = client.get_model_version(task.name, "1").tags
    assert (tags["ptp.verdict"], tags["reviewed"]) == ("failed", "by ann")
    assert (examine(shown, task.name), reconcile(shown, {}, task.name)) == ([], [])


def test_a_verdict_that_was_given_while_mlflow_was_away_is_shown(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    published(shown, task, 1, kind="failed")
    published(Registry(shown.ledger, shown.store, MlflowStore("http://127.0.0.1:9")), task, 1)
    assert [action.what for action in reconcile(shown, {}, task.name)] == [MENDED]
    version = client.get_model_version(task.name, "1")
    assert (version.tags["ptp.verdict"], "### Verdict: passed" in version.description) == ("passed", True)
    assert reconcile(shown, {}, task.name) == []


def test_a_damaged_version_keeps_no_other_from_mlflow(shown: Registry, task: Task, client: MlflowClient) -> None:
    for seed in (1, 2):
        published(shown, task, seed)
    key = f"{prompt_prefix(task.name, an_artifact(task, 1).digest)}/prompt.safetensors"
    shown.store.replace(key, b"rot", shown.store.read(key).etag)
    client.delete_model_version_tag(task.name, "1", "ptp.version")
    client.delete_model_version(task.name, "2")
    assert [action.done for action in reconcile(shown, {}, task.name)] == [False, True]
    assert client.get_model_version(task.name, "3").tags["ptp.digest"] == an_artifact(task, 2).digest
