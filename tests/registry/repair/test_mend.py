"""Repairs that need no person: what they leave alone, what they keep, and what one of several keeps from none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.fixtures.prompts import a_request, a_snapshot, an_artifact, published
from ptpipeline.data.snapshot import encode_manifest
from ptpipeline.prompts.artifact import read_artifact, write_artifact
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import (
    dossiers_prefix,
    history_key,
    manifest_key,
    pointer_key,
    quarantined_release_key,
    release_key,
    snapshot_manifest_key,
    tensors_key,
)
from ptpipeline.task.task import Task
from registry.ledger.ledger import Release
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.mend import _write_copy, fix
from registry.versions.commit import Cause, encode_release, write_release
from registry.versions.promotion import promote
from registry.versions.publish import register, stage
from tests.registry.repair.test_doctor import overwrite
from tests.registry.signed import TASK
from tests.registry.signed import overwrite as forge
from tests.registry.versions.test_steps import Watched

ME = Cause("me", "because")


def lose_dossiers(registry: Registry, task: Task, seed: int) -> None:
    for key in [*registry.store.keys(dossiers_prefix(task.name, an_artifact(task, seed).digest))]:
        registry.store.delete(key)


def test_a_row_that_the_ledger_never_had_stays_for_a_person(plain: Registry, task: Task) -> None:
    promote(plain, task, published(plain, task, 1), ME)
    stray = history_key(task.name, "production", 7)
    plain.store.create(stray, b"{}")
    plain.store.delete(history_key(task.name, "production", 1))
    fix(plain, {}, examine(plain))
    assert [found.what for found in examine(plain)] == [f"object {stray}"]
    assert plain.store.read(stray).body == b"{}"


def test_the_dossier_of_a_version_that_nobody_judged_is_written_again(plain: Registry, task: Task) -> None:
    stage(plain.ledger, plain.store, an_artifact(task, 1))
    register(plain, replace(a_request(task, 1), verdict=None))
    lose_dossiers(plain, task, 1)
    assert [(found.kind, found.safe) for found in examine(plain)] == [("dossier", True)]
    fix(plain, {}, examine(plain))
    assert examine(plain) == []


def test_a_version_whose_making_nobody_knows_keeps_no_other_from_its_dossier(plain: Registry, task: Task) -> None:
    write_artifact(plain.store, an_artifact(task, 1))
    plain.ledger.add_version(task.name, an_artifact(task, 1).digest)
    published(plain, task, 2)
    lose_dossiers(plain, task, 2)
    assert all(action.done for action in fix(plain, {}, examine(plain)))
    assert "records of version 2" not in [found.what for found in examine(plain)]


class Promoting(FolderStore):
    """A folder in which somebody promotes right before a deletion."""

    do: Callable[[], object] | None = None

    def delete(self, key: str) -> None:
        if self.do:
            do, self.do = self.do, None
            do()
        super().delete(key)


def test_a_pointer_that_is_promoted_while_it_is_set_aside_comes_back(
    plain: Registry, task: Task, tmp_path: Path
) -> None:
    promote(plain, task, published(plain, task, 1), ME)
    plain.store.create(pointer_key(task.name, "stray"), b"{}")
    found, store = examine(plain), Promoting(tmp_path / "store")
    store.do = lambda: promote(plain, task, 1, ME, "stray")
    fix(Registry(plain.ledger, store), {task.name: task}, found)
    assert (store.do, examine(plain)) == (None, [])


def test_a_release_that_was_altered_is_kept_and_a_sound_one_is_not_touched(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    spring, autumn = (
        Release(name=name, actor="me", reason="why", versions={task.name: 1}, at="2026-01-01")
        for name in ("spring", "autumn")
    )
    for release in (spring, autumn):
        plain.ledger.append_release(release, [])
        write_release(plain.store, release)
    overwrite(plain.store, release_key("spring"), b"{}")
    fix(plain, {}, examine(plain))
    assert examine(plain) == []
    kept = quarantined_release_key("spring", b"{}")
    assert plain.store.read(kept).body == b"{}"
    assert not plain.store.exists(quarantined_release_key("autumn", encode_release(autumn)))


def test_a_snapshots_manifest_that_nobody_signed_is_written_from_the_ledger(keyed: Registry) -> None:
    snapshot = a_snapshot(TASK)
    key = snapshot_manifest_key(TASK.name, snapshot.digest)
    keyed.store.create(key, encode_manifest(snapshot))
    forge(keyed.store, key, b"{}")
    fix(keyed, {}, [found for found in examine(keyed) if found.what == f"object {key}"])
    assert keyed.store.read(key).body == encode_manifest(snapshot)


def test_a_prompt_that_comes_back_is_kept_from_a_collection_and_gets_its_manifest_last(
    plain: Registry, task: Task, tmp_path: Path
) -> None:
    published(plain, task, 1)
    copy, store = an_artifact(task, 1), Watched(tmp_path / "store")
    overwrite(plain.store, tensors_key(task.name, copy.digest), b"rot")
    plain.store.delete(manifest_key(task.name, copy.digest))
    intents: list[int] = []
    store.before_put = lambda key: intents.append(len(plain.ledger.intents()))
    _write_copy(Registry(plain.ledger, store), copy)
    assert store.puts[-2:] == [tensors_key(task.name, copy.digest), manifest_key(task.name, copy.digest)]
    assert ({*intents}, plain.ledger.intents()) == ({1}, [])
    assert read_artifact(plain.store, task.name, copy.digest) == copy
