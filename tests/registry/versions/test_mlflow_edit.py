"""Changing aliases in MLflow, over a real MLflow server: a person's edit, a late write of ours, what was deleted or
restored there.
"""

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import select

from benchmarks.fixtures.mlflow_server import running_mlflow
from benchmarks.fixtures.prompts import a_request, a_task, an_artifact, published
from ptpipeline.storage import FolderStore
from ptpipeline.task.promoters import Promoters
from ptpipeline.task.task import Task
from registry import failpoints
from registry.ledger import tables
from registry.ledger.database import insert
from registry.ledger.ledger import Ledger, Move
from registry.mlflow import client as mlflow_client
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.reconcile import reconcile
from registry.versions import projection
from registry.versions.commit import Cause
from registry.versions.mlflow_alias import Action
from registry.versions.promotion import promote
from registry.versions.publish import register, stage
from registry.versions.sign import sign_task
from tests import processes
from tests.http_server import Quiet, serve
from tests.registry.mlflow.test_store import losing
from tests.registry.signed import ADA, WORKER, public_line, signed

pytestmark = pytest.mark.servers
ME = Cause("me", "because")
LEASE, REQUEST = 0.4, 0.2  # seconds
APART = 2 * REQUEST + 0.1


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)


def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "LEASE_SECONDS", LEASE)
    monkeypatch.setattr(mlflow_client, "REQUEST_SECONDS", REQUEST)


@pytest.fixture
def pair(shown: Registry, task: Task) -> Registry:
    """Version 1 in production, version 2 registered with a passed verdict over it."""
    first = promote(shown, task, published(shown, task, 1), ME)
    published(shown, task, 2, first.digest)
    return shown


@pytest.fixture
def failed(pair: Registry, task: Task) -> Registry:
    """Beside them version 3, with a failed verdict."""
    published(pair, task, 3, an_artifact(task, 1).digest, "failed")
    return pair


LOOKED: dict[str, float] = {}  # when a task was last looked at


def looked_at(registry: Registry, task: Task, times: int = 2) -> list[Action]:
    """What that many reconciles did, further apart than the requests of one write."""
    actions = []
    for _ in range(times):
        time.sleep(max(0.0, LOOKED.get(task.name, 0.0) + APART - time.monotonic()))
        actions = reconcile(registry, {task.name: task}, task.name)
        LOOKED[task.name] = time.monotonic()
    return actions


def rows(registry: Registry, task: Task) -> list[tuple[str, int, str]]:
    return [(row.alias, row.version, row.actor) for row in registry.ledger.history(task.name)]


def production(client: MlflowClient, task: Task) -> str:
    """The digest of the version that MLflow shows in production."""
    return str(client.get_model_version_by_alias(task.name, "production").tags.get("ptp.digest"))


# ---------------------------------------------------------------- a person's edit


def test_an_edit_becomes_a_promotion(pair: Registry, task: Task, client: MlflowClient) -> None:
    client.set_registered_model_alias(task.name, "production", "2")
    looked_at(pair, task)
    assert rows(pair, task) == [("production", 1, "me"), ("production", 2, "mlflow-ui")]
    assert pair.ledger.history(task.name)[1].verdict is not None
    assert examine(pair, task.name) == []


def test_an_edit_is_not_judged_at_first_sight(
    pair: Registry, task: Task, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_client, "REQUEST_SECONDS", 300.0)
    client.set_registered_model_alias(task.name, "production", "2")
    for _ in range(2):
        found = reconcile(pair, {task.name: task}, task.name)
        assert [(action.done, action.what[:67]) for action in found] == [
            (False, "MLflow alias production was set to version 2; a reconcile judges it")
        ]
    assert production(client, task) == an_artifact(task, 2).digest
    assert len(rows(pair, task)) == 1


def test_an_edit_to_a_failed_version_is_put_back(failed: Registry, task: Task, client: MlflowClient) -> None:
    client.set_registered_model_alias(task.name, "production", "3")
    looked_at(failed, task)
    assert rows(failed, task) == [("production", 1, "me")]
    assert production(client, task) == an_artifact(task, 1).digest
    assert "went back to version 1" in client.get_model_version(task.name, "3").tags["ptp.refused"]
    assert "failed the gate (minimum" in client.get_model_version(task.name, "3").tags["ptp.refused"]
    assert examine(failed, task.name) == []


def test_an_edit_over_another_champion_is_put_back(pair: Registry, task: Task, client: MlflowClient) -> None:
    rival = published(pair, task, 4, an_artifact(task, 1).digest)
    promote(pair, task, 2, ME)
    client.set_registered_model_alias(task.name, "production", str(rival))
    assert "the champion changed" in looked_at(pair, task)[-1].what
    assert production(client, task) == an_artifact(task, 2).digest


def test_an_edit_of_an_undeclared_task_is_put_back(pair: Registry, task: Task, client: MlflowClient) -> None:
    client.set_registered_model_alias(task.name, "production", "2")
    reconcile(pair, {}, task.name)
    time.sleep(APART)
    assert "no valid task file declares this task" in reconcile(pair, {}, task.name)[-1].what
    assert production(client, task) == an_artifact(task, 1).digest


@pytest.mark.parametrize(
    ("required_for", "version", "why"),
    [
        (
            "promotion",
            2,
            "asks for a promoter's signature of every promotion (`promoters`), and mlflow-ui signed nothing",
        ),
        ("override", 3, "failed the gate"),
    ],
)
def test_an_edit_passes_no_door_that_a_promoter_keeps(
    failed: Registry, task: Task, client: MlflowClient, required_for: str, version: int, why: str
) -> None:
    """Whoever may edit MLflow's page has no promoter's key: MLflow knows no signatures."""
    guarded = task.model_copy(update={"promoters": Promoters(keys=[public_line(ADA)], required_for=required_for)})
    worker = signed(failed, WORKER, WORKER, ADA)
    sign_task(worker, worker.store, task.name)  # type: ignore[arg-type]
    client.set_registered_model_alias(task.name, "production", str(version))
    looked_at(worker, guarded)
    assert rows(worker, task) == [("production", 1, "me")]
    assert production(client, task) == an_artifact(task, 1).digest
    assert why in client.get_model_version(task.name, str(version)).tags["ptp.refused"]
    assert examine(worker, task.name) == []


def test_an_edit_of_what_a_promoter_may_promote_is_the_promoters(
    pair: Registry, task: Task, client: MlflowClient
) -> None:
    """The same version that MLflow's page could not promote: the promoter does, and the page shows it."""
    guarded = task.model_copy(update={"promoters": Promoters(keys=[public_line(ADA)], required_for="promotion")})
    worker, promoter = signed(pair, WORKER, WORKER, ADA), signed(pair, ADA, WORKER, ADA)
    sign_task(worker, worker.store, task.name)  # type: ignore[arg-type]
    client.set_registered_model_alias(task.name, "production", "2")
    looked_at(worker, guarded)
    promote(promoter, guarded, 2, Cause("ada", "reviewed", signer=ADA))
    assert looked_at(worker, guarded) == []
    assert rows(worker, task) == [("production", 1, "me"), ("production", 2, "ada")]
    assert production(client, task) == an_artifact(task, 2).digest


@pytest.mark.parametrize("required_for", ["override", "promotion"])
def test_a_refused_edit_of_a_quiet_task_tells_no_test_figure(
    pair: Registry, task: Task, client: MlflowClient, required_for: str
) -> None:
    """Its page says which check failed; what was measured would let whoever edits compose the next candidate."""
    quiet = a_request(task, 3, an_artifact(task, 1).digest, passed=False)
    assert quiet.verdict is not None
    stage(pair.ledger, pair.store, an_artifact(task, 3))
    register(pair, replace(quiet, verdict=quiet.verdict.model_copy(update={"figures": "quiet"})))
    guarded = task.model_copy(update={"promoters": Promoters(keys=[public_line(ADA)], required_for=required_for)})
    client.set_registered_model_alias(task.name, "production", "3")
    actions = looked_at(pair, guarded)
    shown = client.get_model_version(task.name, "3")
    told = [shown.tags["ptp.refused"], *(action.what for action in actions), str(shown.description), str(shown.tags)]
    assert "failed the gate (minimum: " in told[0]
    assert not [words for words in told if "0.50" in words]
    assert rows(pair, task) == [("production", 1, "me")]


def test_an_ungated_alias_is_moved_by_an_edit(failed: Registry, task: Task, client: MlflowClient) -> None:
    promote(failed, task, 1, ME, "canary")
    client.set_registered_model_alias(task.name, "canary", "3")
    looked_at(failed, task)
    assert ("canary", 3, "mlflow-ui") in rows(failed, task)
    assert examine(failed, task.name) == []


def test_a_second_edit_is_a_new_sighting(failed: Registry, task: Task, client: MlflowClient) -> None:
    client.set_registered_model_alias(task.name, "production", "2")
    looked_at(failed, task, 1)
    client.set_registered_model_alias(task.name, "production", "3")
    assert [action.done for action in looked_at(failed, task, 1)] == [False]
    client.set_registered_model_alias(task.name, "production", "1")
    assert looked_at(failed, task, 1) == []
    client.set_registered_model_alias(task.name, "production", "3")
    assert [action.done for action in looked_at(failed, task, 1)] == [False]


def test_an_edit_that_the_ledger_overtakes_is_dropped(
    failed: Registry, task: Task, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.set_registered_model_alias(task.name, "production", "2")
    looked_at(failed, task, 1)

    def overtake(step: str) -> None:
        if step == "promotion checked":
            failed.ledger.append(
                Move(task=task.name, alias="production", version=3, actor="rival", reason="first", expected=1)
            )

    monkeypatch.setattr(failpoints, "_watching", [overtake])
    looked_at(failed, task, 1)
    assert rows(failed, task) == [("production", 1, "me"), ("production", 3, "rival")]
    assert production(client, task) == an_artifact(task, 3).digest


def test_a_foreign_version_is_put_back_at_once(pair: Registry, task: Task, client: MlflowClient) -> None:
    foreign = client.create_model_version(task.name, "s3://somewhere/else", await_creation_for=0).version
    client.set_registered_model_alias(task.name, "production", str(foreign))
    looked_at(pair, task, 1)
    assert production(client, task) == an_artifact(task, 1).digest
    assert "the ledger has no such version" in client.get_model_version(task.name, str(foreign)).tags["ptp.refused"]


def test_a_copy_of_the_head_is_the_head(pair: Registry, task: Task, client: MlflowClient) -> None:
    copied = client.copy_model_version(f"models:/{task.name}/1", task.name).version
    client.set_registered_model_alias(task.name, "production", str(copied))
    assert looked_at(pair, task) == []
    assert client.get_registered_model(task.name).aliases["production"] == str(copied)


def test_an_unknown_alias_is_left_alone(pair: Registry, task: Task, client: MlflowClient) -> None:
    client.set_registered_model_alias(task.name, "mine", "2")
    assert looked_at(pair, task) == []
    assert client.get_registered_model(task.name).aliases == {"production": "1", "mine": "2"}


# ---------------------------------------------------------------- what was deleted or altered in the UI


def test_a_deleted_alias_comes_back(pair: Registry, task: Task, client: MlflowClient) -> None:
    client.delete_registered_model_alias(task.name, "production")
    assert [action.what for action in looked_at(pair, task, 1)] == [
        "MLflow alias production -> version 1: it was missing"
    ]
    assert examine(pair, task.name) == []


def test_a_deleted_model_comes_back(pair: Registry, task: Task, client: MlflowClient) -> None:
    client.delete_registered_model(task.name)
    assert all(action.done for action in looked_at(pair, task, 1))
    assert examine(pair, task.name) == []
    assert production(client, task) == an_artifact(task, 1).digest


def test_deleted_tags_come_back(failed: Registry, task: Task, client: MlflowClient) -> None:
    for tag in ("ptp.digest", "ptp.version"):
        client.delete_model_version_tag(task.name, "1", tag)
    client.delete_model_version_tag(task.name, "2", "ptp.version")
    looked_at(failed, task)
    tags = {number: client.get_model_version(task.name, number).tags for number in ("1", "2", "3")}
    assert {number: (found["ptp.digest"], found["ptp.version"]) for number, found in tags.items()} == {
        number: (an_artifact(task, int(number)).digest, number) for number in tags
    }
    assert len(client.search_model_versions(f"name='{task.name}'")) == 3
    assert rows(failed, task) == [("production", 1, "me")]


def test_a_forged_digest_is_seen_through(failed: Registry, task: Task, client: MlflowClient) -> None:
    client.set_model_version_tag(task.name, "3", "ptp.digest", an_artifact(task, 2).digest)
    client.set_model_version_tag(task.name, "3", "ptp.version", "2")
    looked_at(failed, task, 1)
    assert MlflowStore.digests(MlflowStore(str(client.tracking_uri)), task.name) == {
        str(n): an_artifact(task, n).digest for n in (1, 2, 3)
    }


# ---------------------------------------------------------------- late writes


def a_promoter(folder: Path, mlflow_url: str, name: str, control: Connection) -> None:
    """Process A: promotes version 1, stands still before and after its write to MLflow's alias, and goes on when it is
    told.
    """
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch)

        def reached(step: str) -> None:
            if step in ("alias attempted", "alias written"):
                control.send(step)
                control.recv()

        failpoints.watch(reached)
        registry = Registry(
            Ledger(f"sqlite:///{folder}/ledger.db"), FolderStore(folder / "store"), MlflowStore(mlflow_url)
        )
        promote(registry, a_task(name), 1, ME)


@pytest.mark.parametrize("ends", ["goes on", "is killed after its write", "is killed while it writes"])
def test_a_late_write_is_no_edit(
    shown: Registry, task: Task, tmp_path: Path, mlflow_url: str, client: MlflowClient, ends: str
) -> None:
    published(shown, task, 1)
    published(shown, task, 2, an_artifact(task, 1).digest)
    ours, theirs = processes.Pipe()
    slow = processes.start(a_promoter, tmp_path, mlflow_url, task.name, theirs)
    theirs.close()  # so that its death ends the wait for it
    assert ours.recv() == "alias attempted"
    time.sleep(LEASE)
    head = promote(shown, task, 2, ME)
    assert production(client, task) == head.digest
    if ends == "is killed while it writes":  # the alias is set, the seq beside it is not
        client.set_registered_model_alias(task.name, "production", "1")
    else:
        ours.send("go on")
        assert ours.recv() == "alias written"
        assert production(client, task) == an_artifact(task, 1).digest
    slow.kill() if ends != "goes on" else ours.send("go on")
    looked_at(shown, task)
    slow.kill()
    slow.join()
    looked_at(shown, task)
    assert rows(shown, task) == [("production", 1, "me"), ("production", 2, "me")]
    assert production(client, task) == head.digest
    left = examine(shown, task.name)  # who was killed while he tried again leaves his lease behind
    assert [difference for difference in left if difference.kind != "lease"] == []


def test_a_late_write_is_put_back_once(pair: Registry, task: Task, client: MlflowClient) -> None:
    noted(pair, task, an_artifact(task, 2).digest)
    client.set_registered_model_alias(task.name, "production", "2")
    assert [action.what for action in looked_at(pair, task, 1)] == [
        "MLflow alias production -> version 1: a late write of ours had moved it"
    ]
    client.set_registered_model_alias(task.name, "production", "2")  # now it is a person
    looked_at(pair, task)
    assert rows(pair, task)[-1] == ("production", 2, "mlflow-ui")


def test_each_late_write_has_its_own_note(pair: Registry, task: Task, client: MlflowClient) -> None:
    for _ in range(2):
        noted(pair, task, an_artifact(task, 2).digest)
    for _ in range(2):
        client.set_registered_model_alias(task.name, "production", "2")
        assert "a late write of ours" in looked_at(pair, task, 1)[0].what


def noted(registry: Registry, task: Task, digest: str) -> None:
    """What a process leaves that was killed while its request to set the alias was under way."""
    with registry.ledger.database.writing() as connection:
        row = {
            "task": task.name,
            "alias": "production",
            "digest": digest,
            "owner": str(time.time_ns()),
            "at": "2026-01-01T00:00:00+00:00",
        }
        connection.execute(insert(connection, tables.attempt).values(**row))


def test_a_write_that_arrived_leaves_no_note(pair: Registry, task: Task) -> None:
    with pair.ledger.database.reading() as connection:
        assert connection.execute(select(tables.attempt)).all() == []


# ---------------------------------------------------------------- backups and outages


def test_a_restored_mlflow_is_brought_up(plain: Registry, tmp_path: Path) -> None:
    task, folder = a_task(), tmp_path / "mlflow"
    with running_mlflow(folder) as url:
        shown = Registry(plain.ledger, plain.store, MlflowStore(url))
        first = promote(shown, task, published(shown, task, 1), ME)
        promote(shown, task, 1, ME, "canary")
        with (
            closing(sqlite3.connect(folder / "mlflow.db")) as mlflow,
            closing(sqlite3.connect(tmp_path / "backup.db")) as copy,
        ):
            mlflow.backup(copy)
        promote(shown, task, published(shown, task, 3, first.digest, "failed"), ME, "canary")
        promote(shown, task, published(shown, task, 2, first.digest), ME)
    for name in ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm"):
        (folder / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", folder / "mlflow.db")
    with running_mlflow(folder) as url:
        registry = Registry(plain.ledger, plain.store, MlflowStore(url))
        looked_at(registry, task)
        assert {actor for _, _, actor in rows(registry, task)} == {"me"}
        assert examine(registry) == []


def test_an_unreachable_mlflow_stops_no_pointer(pair: Registry, task: Task) -> None:
    pair.ledger.append(Move(task=task.name, alias="production", version=2, actor="me", reason="why", expected=1))
    actions = reconcile(Registry(pair.ledger, pair.store, MlflowStore("http://127.0.0.1:9")), {}, task.name)
    assert [(action.done, action.what[:20]) for action in actions] == [
        (True, "pointer production -"),
        (False, "MLflow at http://127"),
    ]
    assert examine(Registry(pair.ledger, pair.store), task.name) == []


def test_an_mlflow_that_refuses_us_stops_no_pointer(pair: Registry, task: Task) -> None:
    pair.ledger.append(Move(task=task.name, alias="production", version=2, actor="me", reason="why", expected=1))
    with refusing() as url:
        actions = reconcile(Registry(pair.ledger, pair.store, MlflowStore(url)), {}, task.name)
    assert [(action.done, action.what[:20]) for action in actions] == [
        (True, "pointer production -"),
        (False, "MLflow at http://127"),
    ]


@contextmanager
def refusing() -> Iterator[str]:
    """An MLflow server that lets nobody in."""

    class Refusing(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(403)

    with serve(Refusing) as url:
        yield url


def test_a_reconcile_with_nothing_to_do_asks_twice(shown: Registry, mlflow_url: str) -> None:
    tasks = {name: a_task(f"{name}-{time.time_ns()}") for name in ("one", "two", "three")}
    for task in tasks.values():
        first = promote(shown, task, published(shown, task, 1), ME)
        promote(shown, task, published(shown, task, 2, first.digest), ME)
        promote(shown, task, 1, ME, "canary")
    with losing(mlflow_url, 0) as (url, log):
        assert reconcile(Registry(shown.ledger, shown.store, MlflowStore(url)), tasks) == []
    assert [line.partition("?")[0] for line in log] == [
        "GET /api/2.0/mlflow/model-versions/search",
        "GET /api/2.0/mlflow/registered-models/search",
    ]
