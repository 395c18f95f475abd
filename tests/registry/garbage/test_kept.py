"""What a collection keeps: the young, the named, and what belongs to another task than the one that is asked for."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from benchmarks.fixtures.prompts import a_report, a_task, an_artifact, published
from ptpipeline.errors import ServiceUnavailable, SettingsError
from ptpipeline.prompts.artifact import write_artifact
from ptpipeline.records.base import digest_of, now
from ptpipeline.records.versions import Beside, Pointer
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import manifest_key, pointer_key, snapshot_prefix
from ptpipeline.task.task import Task
from registry.garbage.collect import collect
from registry.garbage.plan import Collected
from registry.garbage.roots import Retention, prompts_aliased
from registry.ledger import clock, tables, tombstone
from registry.ledger.holdings import holdings
from registry.ledger.ledger import Ledger, Release
from registry.ledger.usage import Name, snapshots
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.versions.promotion import promote
from registry.versions.publish import stage
from tests.registry.garbage.test_collect import ME, TWO, age, shown, store_snapshot
from tests.registry.garbage.test_signatures import _make_old

if TYPE_CHECKING:
    from mlflow import MlflowClient


def nobodys_snapshot(registry: Registry, task: Task) -> str:
    """A snapshot that the ledger does not know, as an ingest leaves it that was killed."""
    digest = digest_of([task.name, "nobody's"])
    registry.store.create(f"snapshots/{task.name}/{digest}/manifest.json", b"{}")
    return digest


def kinds(items: list[Collected]) -> list[tuple[str, str | None]]:
    return sorted((item.what, item.task) for item in items)


def test_a_snapshot_that_is_being_stored_stays_for_the_grace_period(plain: Registry, task: Task) -> None:
    digest = nobodys_snapshot(plain, task)
    assert collect(plain, Retention(), apply=True) == []
    age(plain.store, 25 * 3600)
    assert [item.digest for item in collect(plain, Retention(), apply=True)] == [digest]


def test_what_is_asked_for_one_task_goes_of_that_task_alone(plain: Registry, task: Task) -> None:
    other = a_task(f"{task.name}-two")
    for each in (task, other):
        nobodys_snapshot(plain, each)
        for seed in range(3):
            published(plain, each, seed)
    plain.store.create(f"checkpoints/{'a' * 64}.safetensors", b"old")
    assert kinds(collect(plain, TWO, apply=True, task=task.name)) == [("snapshot", task.name), ("version", task.name)]
    assert kinds(collect(plain, TWO, apply=True)) == [
        ("checkpoint", None),
        ("snapshot", other.name),
        ("version", other.name),
    ]


def test_a_manifest_that_cannot_be_read_keeps_the_snapshots_of_its_task(plain: Registry, task: Task) -> None:
    published(plain, task, 0)
    nobodys_snapshot(plain, task)
    key = manifest_key(task.name, an_artifact(task, 0).digest)
    stored = plain.store.read(key)
    plain.store.replace(key, stored.body.replace(b'"seed": 0', b'"seed": 4'), stored.etag)
    assert collect(plain, TWO, apply=True) == []


def test_what_stands_beside_an_alias_by_its_pointer_alone_stays(plain: Registry, task: Task) -> None:
    for seed in range(4):
        published(plain, task, seed)
    head = promote(plain, task, 4, ME)
    beside = Beside(version=1, digest=an_artifact(task, 0).digest, percent=10)
    pointer = Pointer(promotion=head.model_copy(update={"beside": beside}), nonce="0" * 32)
    key = pointer_key(task.name, "production")
    plain.store.replace(key, pointer.model_dump_json().encode(), plain.store.read(key).etag)
    assert shown(collect(plain, TWO)) == {("version", 2)}


def test_what_a_release_names_stays_although_no_alias_named_it(plain: Registry, task: Task) -> None:
    for seed in range(4):
        published(plain, task, seed)
    release = Release(name="spring", actor="me", reason="why", versions={task.name: 1, "gone": 7}, at=now())
    plain.ledger.append_release(release, [])
    assert shown(collect(plain, TWO)) == {("version", 2)}


@pytest.mark.parametrize(("days", "kept"), [(1, False), (3, True)])
def test_a_publish_is_abandoned_after_the_grace_period_if_that_is_longer_than_a_day(
    plain: Registry, task: Task, days: int, kept: bool
) -> None:
    stage(plain.ledger, plain.store, an_artifact(task, 0))
    with plain.ledger.database.writing() as connection:
        connection.execute(update(tables.intent).values(at=(datetime.now(UTC) - timedelta(days=2)).isoformat()))
    age(plain.store, 4 * 86400)
    collected = collect(plain, Retention(grace=timedelta(days=days)), apply=True)
    assert (collected == [], len(plain.ledger.intents()) == 1) == (kept, kept)


def test_an_interrupted_deletion_is_finished_and_told_as_one(plain: Registry, task: Task) -> None:
    for seed in range(3):
        published(plain, task, seed)
    collect(plain, TWO, apply=True)
    left = f"prompts/{task.name}/{an_artifact(task, 0).digest}/prompt.safetensors"
    plain.store.create(left, b"left")
    assert [item.why for item in collect(plain, TWO, apply=True)] == ["its deletion was interrupted"]
    assert not plain.store.exists(left)
    assert collect(plain, TWO, apply=True) == []


def test_the_signatures_of_another_task_stay(keyed: Registry) -> None:
    _make_old(keyed)
    assert collect(keyed, Retention(), task="another") == []
    assert [item.what for item in collect(keyed, Retention())] == ["signature"] * 2


def test_a_snapshot_of_the_last_run_of_each_task_stays(plain: Registry, task: Task) -> None:
    other = a_task(f"{task.name}-two")
    old = store_snapshot(plain, task, "old")
    store_snapshot(plain, task, "new")
    store_snapshot(plain, other, "only")
    assert [item.digest for item in collect(plain, TWO)] == [old]


class UsedAgain(Ledger):
    """A ledger in which a run uses a snapshot once a collection has made its plan."""

    name = Name("", "")

    def forget_intents(self, before: str) -> None:
        super().forget_intents(before)
        for snapshot in snapshots(self, self.name):
            self.save_snapshot(snapshot)


def test_a_snapshot_that_a_run_uses_between_plan_and_burial_stays(plain: Registry, task: Task) -> None:
    old = store_snapshot(plain, task, "old")
    store_snapshot(plain, task, "new")
    ledger = UsedAgain(plain.ledger.url)
    ledger.name = Name(task.name, old)
    assert collect(replace(plain, ledger=ledger), TWO, apply=True) == []
    assert [*plain.store.keys(snapshot_prefix(task.name, old))]


def test_a_killed_collectors_tombstone_of_no_version_goes_with_the_next_collection(plain: Registry, task: Task) -> None:
    grave = tombstone.Tombstone(plain.ledger.database, task.name, "d" * 64)
    grave.bury(lambda _: False)
    grave.leave()  # as if it had expired
    collect(plain, TWO, apply=True)
    assert holdings(plain.ledger, task.name).tombstones == set()


def test_ages_by_another_clock_than_the_ledgers_collect_nothing(
    plain: Registry, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        published(plain, task, seed)
    monkeypatch.setattr(clock, "now", lambda: (datetime.now(UTC) - timedelta(hours=1)).isoformat())
    with pytest.raises(SettingsError, match=r"clock of this machine is 3,[56].. s ahead of that of ledger"):
        collect(plain, Retention(candidates=1, grace=timedelta(minutes=1)), apply=True)
    assert not plain.ledger.version(task.name, 1).collected


class Stubborn(FolderStore):
    """A store that deletes nothing below that prefix at the moment."""

    stubborn = ""

    def delete(self, key: str) -> None:
        if key.startswith(self.stubborn):
            raise ServiceUnavailable(f"{key} cannot be deleted now")
        super().delete(key)


def test_what_could_not_be_deleted_keeps_its_mark_until_a_collection_ends_it(
    plain: Registry, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    for seed in (1, 2, 3):
        published(plain, task, seed)
    with pytest.raises(ServiceUnavailable, match="cannot be deleted now"):
        collect(Registry(plain.ledger, Stubborn(tmp_path / "store")), TWO, apply=True)
    assert plain.ledger.version(task.name, 1).collected
    collect(plain, TWO, apply=True)
    assert not plain.store.exists(manifest_key(task.name, an_artifact(task, 1).digest))


def test_the_rows_of_an_orphan_whose_deletion_was_interrupted_go_with_the_next_collection(
    plain: Registry, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    orphan, report = an_artifact(task, 1), a_report(an_artifact(task, 1), 0.9)
    write_artifact(plain.store, orphan)
    plain.ledger.save_report(report)
    plain.store.create(report.rows_key, b"rows")
    interrupted = Stubborn(tmp_path / "store")
    interrupted.stubborn = report.rows_key
    with pytest.raises(ServiceUnavailable, match="cannot be deleted now"):
        collect(Registry(plain.ledger, interrupted), TWO, apply=True)
    collect(plain, TWO, apply=True)
    assert not plain.store.exists(report.rows_key)


@pytest.mark.servers
def test_what_an_alias_names_that_a_person_set_in_mlflow_stays_alone(
    plain: Registry, mlflow_url: str, task: Task, client: "MlflowClient"
) -> None:
    seen = Registry(plain.ledger, plain.store, MlflowStore(mlflow_url))
    for seed in range(3):
        published(seen, task, seed)
    client.set_registered_model_alias(task.name, "mine", "2")
    assert prompts_aliased(seen, task.name, []) == {Name(task.name, an_artifact(task, 1).digest)}
