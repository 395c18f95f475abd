"""One alias in MLflow: whose version it names, whatever its tags say, and who else writes to the same MLflow."""

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.storage import FolderStore
from ptpipeline.task.task import Task
from registry.ledger.ledger import Ledger
from registry.mlflow import client as mlflow_client
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.reconcile import reconcile, reconcile_aliases
from registry.versions import projection
from registry.versions.commit import Cause
from registry.versions.promotion import promote

pytestmark = pytest.mark.servers
ME = Cause("me", "because")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(mlflow_client, "REQUEST_SECONDS", 0.05)


@pytest.fixture
def promoted(shown: Registry, task: Task) -> Registry:
    """Version 1 in production."""
    promote(shown, task, published(shown, task, 1), ME)
    return shown


def test_an_alias_that_another_registry_moved_is_left_to_it(
    promoted: Registry, task: Task, client: MlflowClient, tmp_path: Path
) -> None:
    """Each would take the other's version for a person's edit and put it back, for ever."""
    second = Ledger(f"sqlite:///{tmp_path}/second.db")
    other = Registry(second, FolderStore(tmp_path / "second"), promoted.mlflow)
    promote(other, task, published(other, task, 7), ME)
    for _ in range(2):
        assert reconcile(promoted, {task.name: task}, task.name) == []
        [left] = [one for one in reconcile(other, {task.name: task}, task.name) if not one.done]
        assert "names version 1, which a registry with another ledger published, so it stays" in left.what
        time.sleep(0.2)
    assert client.get_registered_model(task.name).aliases == {"production": "1"}
    client.delete_model_version(task.name, "1")  # as the sentence says
    reconcile(other, {task.name: task}, task.name)
    assert client.get_model_version_by_alias(task.name, "production").tags["ptp.digest"] == an_artifact(task, 7).digest
    assert (examine(other, task.name), reconcile(other, {task.name: task}, task.name)) == ([], [])
    second.close()


def test_a_version_in_production_without_its_tag_is_no_foreign_one(
    promoted: Registry, task: Task, client: MlflowClient
) -> None:
    client.delete_model_version_tag(task.name, "1", "ptp.digest")
    assert reconcile_aliases(promoted, {task.name: task}, task.name) == []
    assert "ptp.refused" not in client.get_model_version(task.name, "1").tags


def test_a_version_without_its_tag_is_promoted_and_not_shown_twice(
    promoted: Registry, task: Task, client: MlflowClient
) -> None:
    published(promoted, task, 2, an_artifact(task, 1).digest)
    client.delete_model_version_tag(task.name, "2", "ptp.digest")
    promote(promoted, task, 2, ME)
    assert client.get_registered_model(task.name).aliases == {"production": "2"}
    assert len(client.search_model_versions(f"name='{task.name}'")) == 2
    assert (reconcile(promoted, {task.name: task}, task.name), examine(promoted, task.name)) == ([], [])


def test_a_reason_longer_than_a_tag_is_cut(promoted: Registry, task: Task, client: MlflowClient) -> None:
    published(promoted, task, 2, an_artifact(task, 1).digest)
    promote(promoted, task, 2, Cause("me", "# so\n\n| many | words |\n" * 9000))
    assert len(client.get_model_version(task.name, "2").tags["ptp.alias.production"]) == 5000
    assert (reconcile(promoted, {task.name: task}, task.name), examine(promoted, task.name)) == ([], [])
