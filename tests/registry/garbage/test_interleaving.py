"""What changes while a collection is under way, in which order it deletes and puts back, what is too young to go."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from benchmarks.fixtures.prompts import a_request, a_snapshot, a_task, an_artifact, published
from ptpipeline.errors import ServiceUnavailable, SettingsError
from ptpipeline.prompts.artifact import Artifact, write_artifact
from ptpipeline.records.base import digest_of
from ptpipeline.records.serving import Holding
from ptpipeline.serving.servers import report_holdings
from ptpipeline.storage import FolderStore, Listed
from ptpipeline.storage.keys import PROMPTS, prompt_prefix
from ptpipeline.task.task import Task
from registry.garbage import collect as collection
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger import tables, tombstone
from registry.ledger.tombstone import Tombstone
from registry.registry import Registry

ONE = Retention(candidates=1, grace=timedelta(0))


class Recording(FolderStore):
    """A folder that notes its puts and deletions, and lets something happen right before a deletion."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.before_deletion: Callable[[str], None] = lambda key: None

    def create(self, key: str, body: bytes) -> None:
        super().create(key, body)
        self.created.append(key)

    def delete(self, key: str) -> None:
        self.before_deletion(key)
        super().delete(key)
        self.deleted.append(key)


@pytest.fixture
def recording(plain: Registry) -> Recording:
    return Recording(Path(plain.store.url.removeprefix("file://")))


def two_versions(registry: Registry, task: Task) -> None:
    for seed in (1, 2):
        published(registry, task, seed)


def prompt_keys(registry: Registry, task: Task, seed: int) -> list[str]:
    return list(registry.store.keys(prompt_prefix(task.name, an_artifact(task, seed).digest)))


def age(registry: Registry, seconds: float, under: str = "") -> None:
    """As if the objects below that folder had been written so long ago."""
    for path in (Path(registry.store.url.removeprefix("file://")) / under).rglob("*.*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


# ---------------------------------------------------------------- second looks


def test_what_a_server_reports_behind_the_burial_stays(
    plain: Registry, task: Task, at_step: Callable[[str, Callable[[], object]], None]
) -> None:
    two_versions(plain, task)
    before, holding = prompt_keys(plain, task, 1), Holding(task.name, an_artifact(task, 1).digest)
    at_step("collect buried", lambda: report_holdings(plain.store, "host", [holding]))
    assert collect(plain, ONE, apply=True) == []
    assert prompt_keys(plain, task, 1) == before
    assert not plain.ledger.version(task.name, 1).collected


def test_what_becomes_a_part_of_another_behind_the_burial_stays(
    plain: Registry, task: Task, at_step: Callable[[str, Callable[[], object]], None]
) -> None:
    two_versions(plain, task)
    made = an_artifact(task, 9)
    child = Artifact(made.manifest.model_copy(update={"parents": [an_artifact(task, 1).digest]}), made.tensors)
    at_step("collect buried", lambda: write_artifact(plain.store, child))
    assert collect(plain, ONE, apply=True) == []
    assert prompt_keys(plain, task, 1)


def test_a_manifest_that_becomes_unreadable_behind_the_burial_keeps_what_it_may_name(
    plain: Registry, task: Task, at_step: Callable[[str, Callable[[], object]], None]
) -> None:
    two_versions(plain, task)
    key = f"{prompt_prefix(task.name, 'c' * 64)}/manifest.json"
    at_step("collect buried", lambda: plain.store.create(key, b"{}"))
    assert collect(plain, ONE, apply=True) == []


def test_what_was_half_deleted_stays_marked_if_a_server_reports_it(
    plain: Registry, task: Task, at_step: Callable[[str, Callable[[], object]], None]
) -> None:
    """A manifest that is gone cannot serve anybody: the mark tells that a publish has to bring it back."""
    two_versions(plain, task)
    digest = an_artifact(task, 1).digest
    plain.store.delete(f"{prompt_prefix(task.name, digest)}/manifest.json")
    at_step("collect buried", lambda: report_holdings(plain.store, "host", [Holding(task.name, digest)]))
    assert collect(plain, ONE, apply=True) == []
    assert plain.ledger.version(task.name, 1).collected
    assert published(plain, task, 1) == 1


# ---------------------------------------------------------------- order


def test_a_manifest_is_deleted_before_what_it_describes(plain: Registry, task: Task, recording: Recording) -> None:
    two_versions(plain, task)
    rows = a_request(task, 1).report.rows_key  # type: ignore[union-attr]
    plain.store.create(rows, b"rows")
    collect(Registry(plain.ledger, recording), ONE, apply=True)
    assert recording.deleted[0] == f"{prompt_prefix(task.name, an_artifact(task, 1).digest)}/manifest.json"
    assert len(recording.deleted) == 6  # the manifest, tensors, a dossier, a plot, a page, evaluation rows


def test_a_manifest_is_put_back_behind_what_it_describes(
    plain: Registry, task: Task, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    orphan = an_artifact(task, 1)
    write_artifact(plain.store, orphan)
    done: list[str] = []

    def take_over_behind_the_last(key: str) -> None:
        done.append(key)
        if len(done) == 2:
            plain.ledger.intend(task.name, orphan.digest)

    recording.before_deletion = take_over_behind_the_last
    assert collect(Registry(plain.ledger, recording), ONE, apply=True) == []
    assert [key.rsplit("/", 1)[-1] for key in recording.created] == ["prompt.safetensors", "manifest.json"]


class Faltering(Recording):
    """A folder that does not answer to its next put."""

    faults = 1

    def create(self, key: str, body: bytes) -> None:
        if self.faults:
            self.faults -= 1
            raise ServiceUnavailable("the store does not answer")
        super().create(key, body)


def test_a_store_that_is_away_for_a_moment_gets_everything_back(
    plain: Registry, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    orphan = an_artifact(task, 1)
    write_artifact(plain.store, orphan)
    before = prompt_keys(plain, task, 1)
    store = Faltering(Path(plain.store.url.removeprefix("file://")))
    store.before_deletion = lambda key: plain.ledger.intend(task.name, orphan.digest)
    assert collect(Registry(plain.ledger, store), ONE, apply=True) == []
    assert (prompt_keys(plain, task, 1), store.faults) == (before, 0)


def test_what_was_written_anew_meanwhile_is_not_written_over(
    plain: Registry, task: Task, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    orphan = an_artifact(task, 1)
    write_artifact(plain.store, orphan)
    plots = f"{prompt_prefix(task.name, orphan.digest)}/plots/one.png"
    plain.store.create(plots, b"old")
    deleted: list[str] = []

    def take_over_behind_the_last(key: str) -> None:
        deleted.append(key)
        if len(deleted) == 3:
            plain.ledger.intend(task.name, orphan.digest)
            if not plain.store.exists(plots):
                plain.store.create(plots, b"new")

    recording.before_deletion = take_over_behind_the_last
    assert collect(Registry(plain.ledger, recording), ONE, apply=True) == []
    assert deleted[1] == plots
    assert plain.store.read(plots).body == b"new"
    assert len(prompt_keys(plain, task, 1)) == 3


def test_a_shared_prompt_goes_before_the_prompts_that_it_descends_from(plain: Registry, task: Task) -> None:
    pairs: Iterator[tuple[Artifact, Artifact]] = (shared_and_teacher(task, seed) for seed in range(0, 40, 2))
    shared, teacher = next(pair for pair in pairs if pair[1].digest < pair[0].digest)
    for artifact in (teacher, shared):
        write_artifact(plain.store, artifact)
    assert [item.digest for item in collect(plain, ONE)] == [shared.digest, teacher.digest]


def shared_and_teacher(task: Task, seed: int) -> tuple[Artifact, Artifact]:
    teacher, made = an_artifact(task, seed), an_artifact(task, seed + 1)
    changes = {"method": "multitask", "labels": {}, "parents": [teacher.digest]}
    return Artifact(made.manifest.model_copy(update=changes), made.tensors), teacher


# ---------------------------------------------------------------- other collectors


def test_what_another_collector_is_deleting_is_left_to_it(
    plain: Registry, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "WAIT_SECONDS", 0.1)
    two_versions(plain, task)
    other = Tombstone(plain.ledger.database, task.name, an_artifact(task, 1).digest)
    assert other.bury(lambda _: False)
    before = prompt_keys(plain, task, 1)
    assert collect(plain, ONE, apply=True) == []
    assert (prompt_keys(plain, task, 1), other.renew()) == (before, True)


def test_a_deleted_version_keeps_its_mark(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    for _ in range(2):
        collect(plain, ONE, apply=True)
    assert [version.collected for version in plain.ledger.versions(task.name)] == [False, True]


class Overtaken(FolderStore):
    """A folder in which another collector comes right behind the first listing of all prompts."""

    another: Callable[[], object] | None = None

    def keys(self, prefix: str) -> Iterator[str]:
        found, another = [*super().keys(prefix)], self.another
        if prefix == PROMPTS and another:
            self.another = None
            another()
        return iter(found)


def test_a_mark_stays_on_what_another_collector_deletes_meanwhile(
    plain: Registry, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    two_versions(plain, task)
    assert Tombstone(plain.ledger.database, task.name, an_artifact(task, 1).digest).bury(lambda _: False)  # killed here
    store = Overtaken(Path(plain.store.url.removeprefix("file://")))
    store.another = lambda: collect(plain, ONE, apply=True)
    assert collect(Registry(plain.ledger, store), Retention(candidates=2, grace=timedelta(0)), apply=True) == []
    assert (store.another, prompt_keys(plain, task, 1)) == (None, [])
    assert plain.ledger.version(task.name, 1).collected


# ---------------------------------------------------------------- too young, or another's


def begun_ago(registry: Registry, ago: timedelta) -> None:
    with registry.ledger.database.writing() as connection:
        connection.execute(update(tables.intent).values(at=(datetime.now(UTC) - ago).isoformat()))


@pytest.mark.parametrize(
    ("grace", "ago", "kept"),
    [
        (timedelta(0), timedelta(hours=23), True),
        (timedelta(0), timedelta(hours=25), False),
        (timedelta(days=3), timedelta(days=2), True),
        (timedelta(days=3), timedelta(days=4), False),
    ],
)
def test_a_publish_is_given_up_after_a_day_or_a_longer_grace_period(
    plain: Registry, task: Task, grace: timedelta, ago: timedelta, kept: bool
) -> None:
    plain.ledger.intend(task.name, an_artifact(task, 1).digest)
    write_artifact(plain.store, an_artifact(task, 1))
    age(plain, 10 * 24 * 3600)
    begun_ago(plain, ago)
    planned = collect(plain, Retention(candidates=1, grace=grace))
    assert [item.digest for item in planned] == ([] if kept else [an_artifact(task, 1).digest])
    collect(plain, Retention(candidates=1, grace=grace), apply=True)
    assert bool(plain.ledger.intents()) == kept


def test_an_orphan_with_one_young_object_stays(plain: Registry, task: Task) -> None:
    write_artifact(plain.store, an_artifact(task, 1))
    age(plain, 25 * 3600)
    plain.store.create(f"{prompt_prefix(task.name, an_artifact(task, 1).digest)}/plots/new.png", b"new")
    assert collect(plain, Retention()) == []


def test_an_old_version_that_was_published_lately_stays(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    age(plain, 25 * 3600)
    assert collect(plain, Retention(candidates=1)) == []


def test_a_version_that_nobody_published_for_a_grace_period_goes(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    with plain.ledger.database.writing() as connection:
        old = (datetime.now(UTC) - timedelta(hours=25)).isoformat()
        first = tables.publication.c.digest == an_artifact(task, 1).digest
        connection.execute(update(tables.publication).where(first).values(at=old))
    assert [item.version for item in collect(plain, Retention(candidates=1))] == [1]


def test_each_task_keeps_its_newest_versions_and_what_it_published_last(plain: Registry, task: Task) -> None:
    other = a_task(f"{task.name}-b")
    for each in (task, other):
        two_versions(plain, each)
    for each in (task, other):
        published(plain, each, 1)  # the rows went back to what they were
    assert collect(plain, ONE) == []


def a_stored_snapshot(registry: Registry, task: Task, key: str, known: bool = True) -> str:
    digest = digest_of([task.name, key])
    registry.store.create(f"snapshots/{task.name}/{digest}/manifest.json", key.encode())
    if known:
        registry.ledger.save_snapshot(a_snapshot(task).model_copy(update={"digest": digest, "source_key": key}))
    return digest


def test_a_young_snapshot_that_nobody_knows_yet_stays(plain: Registry, task: Task) -> None:
    digest = a_stored_snapshot(plain, task, "new", known=False)
    assert collect(plain, Retention()) == []
    age(plain, 25 * 3600)
    assert [item.digest for item in collect(plain, Retention())] == [digest]


def test_a_collection_of_one_task_leaves_what_is_anothers(plain: Registry, task: Task) -> None:
    other = a_task(f"{task.name}-b")
    two_versions(plain, other)
    a_stored_snapshot(plain, other, "old"), a_stored_snapshot(plain, other, "new")
    plain.store.create(f"checkpoints/{'a' * 64}.safetensors", b"of nobody knows which task")
    two_versions(plain, task)
    assert {(item.task, item.what) for item in collect(plain, ONE, task=task.name)} == {(task.name, "version")}
    assert {item.what for item in collect(plain, ONE)} == {"version", "snapshot", "checkpoint"}


def test_snapshots_of_a_task_with_an_unreadable_manifest_stay(plain: Registry, task: Task) -> None:
    a_stored_snapshot(plain, task, "old"), a_stored_snapshot(plain, task, "new")
    plain.store.create(f"{prompt_prefix(task.name, 'c' * 64)}/manifest.json", b"{}")
    assert collect(plain, ONE) == []


def test_a_checkpoint_whose_name_is_no_digest_is_nobodys_garbage(plain: Registry) -> None:
    for name in ("a" * 64, "mine", "a" * 63):
        plain.store.create(f"checkpoints/{name}.safetensors", b"old")
    assert [item.digest for item in collect(plain, ONE)] == ["a" * 64]


# ---------------------------------------------------------------- clocks, and what cannot be deleted


class OtherClock(FolderStore):
    """A store whose clock is not this machine's."""

    ahead = timedelta(0)

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        for listed in super().list_objects(prefix):
            yield listed._replace(modified=listed.modified + self.ahead)


@pytest.mark.parametrize(("hours", "words"), [(1, "behind"), (-1, "ahead of")])
def test_ages_by_another_clock_than_the_stores_collect_nothing(
    plain: Registry, task: Task, hours: int, words: str
) -> None:
    two_versions(plain, task)
    store = OtherClock(Path(plain.store.url.removeprefix("file://")))
    store.ahead = timedelta(hours=hours)
    before = prompt_keys(plain, task, 1)
    with pytest.raises(SettingsError, match=f"clock of this machine is 3,[56].. s {words}"):
        collect(Registry(plain.ledger, store), Retention(candidates=1, grace=timedelta(minutes=1)), apply=True)
    assert prompt_keys(plain, task, 1) == before
    assert list(store.keys("probe")) == []


class Stubborn(FolderStore):
    """A store that does not delete the objects of one prompt."""

    digest = ""

    def delete(self, key: str) -> None:
        if self.digest in key:
            raise ServiceUnavailable(f"{key} cannot be deleted now")
        super().delete(key)


def test_what_cannot_be_deleted_keeps_nothing_else_and_is_told(plain: Registry, task: Task) -> None:
    for seed in (1, 2, 3):
        published(plain, task, seed)
    store = Stubborn(Path(plain.store.url.removeprefix("file://")))
    store.digest = an_artifact(task, 1).digest
    with pytest.raises(ServiceUnavailable, match="cannot be deleted now"):
        collect(Registry(plain.ledger, store), ONE, apply=True)
    assert prompt_keys(plain, task, 1)
    assert not prompt_keys(plain, task, 2)
