"""One altered object ends nothing for other tasks: every verb goes on, and names the object."""

import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_task, an_artifact, published
from ptpipeline.errors import ArtifactError
from ptpipeline.prompts.artifact import write_artifact
from ptpipeline.serving.resolver import resolve
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import (
    dossiers_prefix,
    history_key,
    manifest_key,
    pointer_key,
    snapshot_manifest_key,
    tensors_key,
    version_key,
)
from ptpipeline.task.task import Task
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.lineage.trace import trace_row, trace_version
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.repair.rebuild import rebuild
from registry.repair.reconcile import reconcile
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from tests.test_foreign import MANIFESTS

ME = Cause("me", "because")
SOUND = a_task("sound")
POLICY = Retention(candidates=1, grace=timedelta(0))

Place = Callable[[Registry, Task], str]


def digest_in(registry: Registry, task: Task) -> str:
    return registry.ledger.version(task.name, 1).digest


OBJECTS: dict[str, Place] = {
    "manifest": lambda r, t: manifest_key(t.name, digest_in(r, t)),
    "tensors": lambda r, t: tensors_key(t.name, digest_in(r, t)),
    "dossier": lambda r, t: next(iter(r.store.keys(dossiers_prefix(t.name, digest_in(r, t))))),
    "pointer": lambda r, t: pointer_key(t.name, "production"),
    "version": lambda r, t: version_key(t.name, 1),
    "history": lambda r, t: history_key(t.name, "production", 1),
    "snapshot": lambda r, t: snapshot_manifest_key(t.name, "5" * 64),
}


def alter(path: Path, how: str) -> None:
    """Put something else at the place of an object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if how == "too large":
        with path.open("wb") as file:
            file.truncate(5 * 2**30)  # a hole: it takes no room
    elif how == "a link":
        path.symlink_to("/etc/passwd")
    else:
        path.write_bytes(MANIFESTS[how])


@pytest.mark.parametrize(
    "how", ["too large", "a link", "a seed beyond canonical JSON", "nested a hundred thousand deep"]
)
@pytest.mark.parametrize("kind", OBJECTS)
def test_every_verb_goes_on(plain: Registry, task: Task, kind: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    for each in (task, SOUND):
        promote(plain, each, published(plain, each, 1), ME)
    assert isinstance(plain.store, FolderStore)
    key = OBJECTS[kind](plain, task)
    alter(plain.store.root / key, how)
    with caplog.at_level(logging.WARNING):
        told = [str(found) for found in examine(plain)]
        tasks = {task.name: task, SOUND.name: SOUND}
        told += [str(action) for action in fix(plain, tasks, examine(plain))]
        told += [str(action) for action in rebuild(plain)]
        told += [str(action) for action in reconcile(plain, tasks)]
        collect(plain, POLICY, apply=True)
        assert trace_version(plain, SOUND.name, 1).origins[0].manifest
        trace_row(plain, "0" * 16)
    assert resolve(plain.store, SOUND.name).number == 1
    named = " ".join([*told, *(record.getMessage() for record in caplog.records)])
    assert any(words in named for words in (key, digest_in(plain, task)[:12], f"{task.name}@production"))
    if kind in ("manifest", "tensors"):
        with pytest.raises(ArtifactError, match=key.rsplit("/", 1)[1]):
            resolve(plain.store, f"{task.name}@1")


def test_what_others_put_into_a_tasks_folder_is_named_and_stays(
    plain: Registry, task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    promote(plain, task, published(plain, task, 1), ME)
    assert isinstance(plain.store, FolderStore)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "manifest.json").write_text("of somebody else")
    folder = plain.store.root / "prompts" / task.name
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / ("f" * 64)).symlink_to(tmp_path / "outside")
    (plain.store.root / "prompts" / "notes").symlink_to(tmp_path / "outside")
    (folder / "my notes.txt").write_text("mine")
    found = {difference.what: difference.kind for difference in examine(plain)}
    keys = [f"prompts/{task.name}/{name}" for name in ("linked", "f" * 64, "my notes.txt")]
    assert found == {f"object {key}": "foreign" for key in keys}
    with caplog.at_level(logging.WARNING):
        assert collect(plain, POLICY, apply=True) == []
    named = [record.getMessage() for record in caplog.records]
    assert all(any(key in line for line in named) for key in [*keys, "prompts/notes"])
    assert (tmp_path / "outside" / "manifest.json").read_text() == "of somebody else"
    assert (folder / "my notes.txt").exists()


@pytest.mark.parametrize("how", ["too large", "a link"])
def test_garbage_is_deleted_even_if_it_cannot_be_read(plain: Registry, task: Task, how: str) -> None:
    assert isinstance(plain.store, FolderStore)
    promote(plain, task, published(plain, task, 1), ME)
    orphan = write_artifact(plain.store, an_artifact(task, 2))
    alter(plain.store.root / tensors_key(task.name, orphan), how)
    stray = plain.store.root / "prompts" / task.name / orphan / "not a key"
    stray.write_text("of somebody else")
    assert [item.digest for item in collect(plain, POLICY, apply=True)] == [orphan]
    assert [key for key in plain.store.keys("prompts") if orphan in key] == [f"prompts/{task.name}/{orphan}/not a key"]
    assert Path("/etc/passwd").exists()
