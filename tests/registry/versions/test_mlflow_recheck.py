"""What changes in MLflow, or in the ledger, between the judging of a person's edit and its being put back."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.records.versions import Promotion
from ptpipeline.storage import FolderStore, Stored
from ptpipeline.task.task import Task
from registry import failpoints
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger import tables
from registry.ledger.ledger import Move
from registry.ledger.projections import applied_projections, sight
from registry.mlflow import client as mlflow_client
from registry.mlflow.store import APPLIED_TAG, MlflowStore, Model
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.reconcile import reconcile
from registry.versions import projection
from registry.versions.commit import Cause
from registry.versions.mlflow_alias import Action
from registry.versions.mlflow_edit import judge
from registry.versions.promotion import promote
from tests.registry.versions.test_mlflow_edit import noted

pytestmark = pytest.mark.servers
ME = Cause("me", "because")
APART = 0.1  # seconds


class Watched(FolderStore):
    """A folder in which something happens the first time that bytes are read for a check."""

    meddle: Callable[[], object] | None = None

    def read(self, key: str) -> Stored:
        if self.meddle is not None and key.endswith("/manifest.json"):
            meddle, self.meddle = self.meddle, None
            meddle()
        return super().read(key)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "LEASE_SECONDS", APART)
    monkeypatch.setattr(mlflow_client, "REQUEST_SECONDS", 0.0)


@pytest.fixture
def head(shown: Registry, task: Task) -> Promotion:
    """Version 1 in production; version 2 passed over it, version 3 failed."""
    first = promote(shown, task, published(shown, task, 1), ME)
    published(shown, task, 2, first.digest)
    published(shown, task, 3, first.digest, "failed")
    return first


@pytest.fixture
def refuse(
    shown: Registry, task: Task, head: Promotion, client: MlflowClient
) -> Callable[[Callable[[], object]], list[Action]]:
    """A person sets production to the failed version 3; while it is judged, something happens; what came of it."""

    def refused(meddle: Callable[[], object]) -> list[Action]:
        client.set_registered_model_alias(task.name, "production", "3")
        sight(shown.ledger, head, an_artifact(task, 3).digest)
        time.sleep(APART + 0.05)
        store = Watched(Path(shown.store.url.removeprefix("file://")))
        store.meddle = meddle
        assert shown.mlflow is not None
        return judge(Registry(shown.ledger, store, shown.mlflow), shown.mlflow, {task.name: task}, head)

    return refused


def production(client: MlflowClient, task: Task) -> str:
    return str(client.get_registered_model(task.name).aliases["production"])


def is_refused(client: MlflowClient, task: Task, number: str) -> bool:
    return "ptp.refused" in client.get_model_version(task.name, number).tags


def test_an_edit_that_stays_is_put_back(
    task: Task, client: MlflowClient, refuse: Callable[[Callable[[], object]], list[Action]]
) -> None:
    assert "put back" in refuse(lambda: None)[-1].what
    assert (production(client, task), is_refused(client, task, "3")) == ("1", True)


def test_a_head_that_moves_meanwhile_is_not_put_back(
    shown: Registry, task: Task, client: MlflowClient, refuse: Callable[[Callable[[], object]], list[Action]]
) -> None:
    move = Move(task=task.name, alias="production", version=2, actor="rival", reason="why", expected=1)
    assert refuse(lambda: shown.ledger.append(move)) == []
    assert not is_refused(client, task, "3")


def test_an_edit_that_changes_meanwhile_is_not_put_back(
    task: Task, client: MlflowClient, refuse: Callable[[Callable[[], object]], list[Action]]
) -> None:
    assert refuse(lambda: client.set_registered_model_alias(task.name, "production", "2")) == []
    assert (production(client, task), is_refused(client, task, "2"), is_refused(client, task, "3")) == (
        "2",
        False,
        False,
    )


def test_an_edit_that_turns_out_as_a_late_write_is_not_put_back_as_a_persons(
    shown: Registry, task: Task, client: MlflowClient, refuse: Callable[[Callable[[], object]], list[Action]]
) -> None:
    assert refuse(lambda: noted(shown, task, an_artifact(task, 3).digest)) == []
    assert not is_refused(client, task, "3")


def test_an_edit_that_is_undone_meanwhile_is_not_put_back(
    task: Task, client: MlflowClient, refuse: Callable[[Callable[[], object]], list[Action]]
) -> None:
    assert refuse(lambda: client.set_registered_model_alias(task.name, "production", "1")) == []
    assert (is_refused(client, task, "1"), is_refused(client, task, "3")) == (False, False)


def test_an_alias_that_mlflow_shows_as_the_ledger_does_is_no_edit(
    shown: Registry, task: Task, head: Promotion, client: MlflowClient
) -> None:
    assert shown.mlflow is not None
    assert judge(shown, shown.mlflow, {task.name: task}, head) == []
    client.delete_registered_model_alias(task.name, "production")
    assert judge(shown, shown.mlflow, {task.name: task}, head) == []


class Healing(MlflowStore):
    """An MLflow in which something happens before the second look at its models."""

    looks = 0
    heal: Callable[[], object] = staticmethod(lambda: None)

    def models(self, task: str | None = None) -> dict[str, Model]:
        self.looks += 1
        if self.looks == 2:
            self.heal()
        return super().models(task)


def test_what_heals_in_mlflow_between_two_looks_is_no_difference(
    shown: Registry, task: Task, head: Promotion, client: MlflowClient, mlflow_url: str
) -> None:
    client.set_registered_model_alias(task.name, "production", "3")
    mlflow = Healing(mlflow_url)
    mlflow.heal = lambda: client.set_registered_model_alias(task.name, "production", "1")  # type: ignore[method-assign]
    assert examine(Registry(shown.ledger, shown.store, mlflow), task.name) == []
    assert mlflow.looks == 2


@pytest.mark.parametrize("followed", [True, False])
def test_only_what_mlflow_followed_before_can_be_an_edit(
    shown: Registry, task: Task, head: Promotion, client: MlflowClient, followed: bool
) -> None:
    client.set_registered_model_alias(task.name, "production", "3")
    if not followed:
        client.set_registered_model_tag(task.name, f"{APPLIED_TAG}production", "7")
    (found,) = examine(shown, task.name)
    assert (found.kind, found.safe) == (("edit", False) if followed else ("alias", True))


def test_a_head_that_moves_before_the_lease_is_taken_is_what_mlflow_shows(
    shown: Registry, task: Task, head: Promotion, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = [Move(task=task.name, alias="production", version=2, actor="rival", reason="why", expected=1)]

    def overtake(step: str) -> None:
        if step == "pointer written" and moves:
            shown.ledger.append(moves.pop())

    monkeypatch.setattr(failpoints, "_watching", [overtake])
    projection.project(shown, task.name, "production")
    assert production(client, task) == "2"
    assert shown.ledger.applied("mlflow", task.name, "production") == (2, 2)


# ---------------------------------------------------------------- other looks at MLflow


def test_a_version_that_a_persons_alias_names_is_not_collected(
    shown: Registry, task: Task, head: Promotion, client: MlflowClient
) -> None:
    published(shown, task, 4, head.digest)
    client.set_registered_model_alias(task.name, "mine", "2")
    planned = collect(shown, Retention(candidates=1, grace=timedelta(0)), task=task.name)
    assert [item.version for item in planned] == [3]


def test_a_sequence_number_that_was_lost_in_mlflow_is_written_again(
    shown: Registry, task: Task, head: Promotion, client: MlflowClient
) -> None:
    client.set_registered_model_tag(task.name, f"{APPLIED_TAG}production", "7")
    reconcile(shown, {task.name: task}, task.name)
    assert client.get_registered_model(task.name).tags[f"{APPLIED_TAG}production"] == "1"


def test_what_mlflow_shows_and_the_ledger_did_not_note_is_noted(shown: Registry, task: Task, head: Promotion) -> None:
    with shown.ledger.database.writing() as connection:
        connection.execute(tables.projection.delete().where(tables.projection.c.target == "mlflow"))
    reconcile(shown, {task.name: task}, task.name)
    assert shown.ledger.applied("mlflow", task.name, "production") == (1, 1)


def test_an_alias_that_agrees_again_is_forgotten_as_a_difference(shown: Registry, task: Task, head: Promotion) -> None:
    sight(shown.ledger, head, an_artifact(task, 2).digest)
    reconcile(shown, {task.name: task}, task.name)
    assert applied_projections(shown.ledger).sighted == set()
