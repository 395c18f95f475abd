"""The power fails between any two system calls of the folder store, and what was not synced is lost or reordered."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_task, an_artifact
from ptpipeline import durable
from ptpipeline.prompts.artifact import write_artifact
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import manifest_key, tensors_key
from tests.storage.crashes import Disk, State, record

OLD, NEW, OTHER = b"the old body", b"the new body", b"another body"
KEY = "p/aliases/production.json"


class Crashing:
    """A folder store on such a disk. `allowed` says what each key may hold at this moment, None for nothing."""

    def __init__(self, folder: Path, lazy: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self.store, self.disk = FolderStore(folder), Disk(folder, lazy)
        self.allowed: dict[str, set[bytes | None]] = {}
        self.check: Callable[[State], None] = self.check_keys
        self.wrong: list[str] = []
        self.looks = 0

    def look(self) -> None:
        self.looks += 1
        for state in self.disk.states():
            self.check({path: body for path, body in state.items() if not path.startswith(".")})

    def check_keys(self, state: State) -> None:
        for key, bodies in self.allowed.items():
            if state.get(key) not in bodies:
                self.wrong.append(f"{key} holds {state.get(key)!r}, expected one of {bodies}")

    def during(self, key: str, before: bytes | None, after: bytes | None, put: Callable[[], None]) -> None:
        """Until the put is acknowledged the key holds the one or the other, then only the other."""
        self.allowed[key] = {before, after}
        put()
        self.allowed[key] = {after}
        self.look()


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Crashing]:
    def make(lazy: str = "") -> Crashing:
        made = Crashing(tmp_path / "store", lazy)
        record(made.disk, monkeypatch, made.look)
        return made

    return make


def write_and_delete(crashing: Crashing) -> None:
    store = crashing.store
    crashing.during(KEY, None, OLD, lambda: store.create(KEY, OLD))
    crashing.during(KEY, OLD, NEW, lambda: store.replace(KEY, NEW, store.read(KEY).etag))
    crashing.during("p/other", None, OTHER, lambda: store.create("p/other", OTHER))
    crashing.during(KEY, NEW, None, lambda: store.delete(KEY))
    crashing.during(KEY, None, OLD, lambda: store.create(KEY, OLD))


def test_a_key_holds_the_old_object_or_the_new_one_and_what_was_acknowledged_stays(
    crashing: Callable[..., Crashing],
) -> None:
    made = crashing()
    write_and_delete(made)
    assert made.wrong == []
    assert made.looks > 20


@pytest.mark.parametrize("lazy", ["files", "folders"])
def test_without_its_syncs_the_disk_is_seen_to_lose(crashing: Callable[..., Crashing], lazy: str) -> None:
    made = crashing(lazy)
    write_and_delete(made)
    assert made.wrong, f"the test would not notice that {lazy} are not synced"


def test_an_object_in_a_folder_that_a_dead_writer_made_survives(
    crashing: Callable[..., Crashing], tmp_path: Path
) -> None:
    made = crashing()
    (tmp_path / "store" / "p" / "aliases").mkdir(parents=True)  # and it died before it synced the folders
    made.during(KEY, None, NEW, lambda: made.store.create(KEY, NEW))
    assert made.wrong == []


def test_an_object_that_a_dead_writer_linked_survives_its_repeat(
    crashing: Callable[..., Crashing], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = crashing("folders")
    made.allowed[KEY] = {None, NEW}
    made.store.create(KEY, NEW)  # it dies before it has synced the folder
    made.disk.lazy = ""
    made.store = FolderStore(made.store.root)
    made.during(KEY, None, NEW, lambda: made.store.create(KEY, NEW))
    assert made.wrong == []


def test_a_manifest_is_never_there_without_its_tensors(crashing: Callable[..., Crashing]) -> None:
    made, artifact = crashing(), an_artifact(a_task())
    manifest, tensors = (key(artifact.manifest.task, artifact.digest) for key in (manifest_key, tensors_key))

    def check(state: State) -> None:
        if manifest in state and state.get(tensors) != artifact.tensors:
            made.wrong.append("a manifest without its tensors")

    made.check = check
    write_artifact(made.store, artifact)
    made.store.delete(manifest)
    made.store.delete(tensors)
    assert made.wrong == []


def test_tensors_behind_their_manifest_would_be_noticed(crashing: Callable[..., Crashing]) -> None:
    made, artifact = crashing(), an_artifact(a_task())
    manifest, tensors = (key(artifact.manifest.task, artifact.digest) for key in (manifest_key, tensors_key))
    made.check = lambda state: made.wrong.append("half") if manifest in state and tensors not in state else None
    made.store.create(manifest, b"{}")
    made.store.create(tensors, artifact.tensors)
    assert made.wrong


def test_a_published_folder_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exports, base models and fetched archives are."""
    disk, seen = Disk(tmp_path), list[State]()
    whole = {"done/one": OLD, "done/deep/two": NEW}

    def look() -> None:
        seen[:] += [{path: body for path, body in state.items() if "done/" in path} for state in disk.states()]

    record(disk, monkeypatch, look)
    for name, body in whole.items():
        path = tmp_path / "partial" / name.removeprefix("done/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        disk.written[path.stat().st_ino] = body
        disk.note(path, path.stat().st_ino)
    durable.publish(tmp_path / "partial", tmp_path / "done")
    assert [state for state in seen if state not in ({}, whole)] == []
    seen.clear()
    look()
    assert whole in seen
    assert {} not in seen
