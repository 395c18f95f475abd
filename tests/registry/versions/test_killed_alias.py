"""A promotion that is killed while it writes MLflow's alias, and repeated: readers never wait, and MLflow follows."""

import os
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.serving.resolver import resolve
from ptpipeline.storage import FolderStore
from ptpipeline.task.task import Task
from registry import failpoints
from registry.ledger.lease import expired_leases
from registry.ledger.ledger import Ledger
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.versions import projection
from registry.versions.commit import Cause
from registry.versions.promotion import promote, rollback
from tests import processes

pytestmark = pytest.mark.servers

STEPS = ("alias attempted", "alias moved", "alias written", "alias described")
ME = Cause("me", "because")
LEASE_SECONDS = 1.0


def kill_at(folder: Path, mlflow_url: str, task: Task, step: str) -> None:
    """Promote version 2 in a process that is killed at the step."""
    projection.LEASE_SECONDS = LEASE_SECONDS
    failpoints.watch(lambda passed: os.kill(os.getpid(), signal.SIGKILL) if passed == step else None)
    store = FolderStore(folder / "store")
    promote(Registry(Ledger(f"sqlite:///{folder}/ledger.db"), store, MlflowStore(mlflow_url)), task, 2, ME)


@pytest.mark.parametrize("step", STEPS)
def test_its_repeat_brings_mlflow_to_the_head(
    shown: Registry,
    task: Task,
    tmp_path: Path,
    mlflow_url: str,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    monkeypatch.setattr(projection, "LEASE_SECONDS", LEASE_SECONDS)
    first = promote(shown, task, published(shown, task, 1), ME)
    published(shown, task, 2, first.digest)
    process = processes.start(kill_at, tmp_path, mlflow_url, task, step)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert resolve(shown.store, task.name).number == 2
    assert promote(shown, task, 2, ME).seq == 2
    tagged = client.get_model_version_by_alias(task.name, "production").tags["ptp.digest"]
    assert tagged == an_artifact(task, 2).digest
    assert (expired_leases(shown.ledger.database), examine(shown, task.name)) == ([], [])


def test_a_rollback_that_mlflow_did_not_show_is_finished_and_goes_no_further(
    shown: Registry, plain: Registry, task: Task
) -> None:
    """The first one dies behind the pointer: without MLflow, as if it had been killed before its alias."""
    digest = None
    for seed in (1, 2, 3):
        number = published(shown, task, seed, digest)
        digest = promote(shown, task, number, ME).digest
    assert rollback(plain, task.name, Cause("me", "complaints")).version == 2
    assert rollback(shown, task.name, Cause("me", "complaints")).version == 2
    assert examine(shown, task.name) == []
    assert rollback(shown, task.name, Cause("me", "complaints")).version == 2
    assert rollback(shown, task.name, Cause("me", "other complaints")).version == 1
