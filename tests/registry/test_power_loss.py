"""The power fails between any two system calls of a publish, a promotion, a rollback or a collection in a folder.

The ledger commits to a disk that keeps its word; of the store's folder, what was not synced is lost or comes in another
order. In every state that this leaves, a reader finds whole versions alone, and the store is not behind what the ledger
notes of it. A rerun brings all that was lost.
"""

import shutil
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.fixtures.prompts import a_task, an_artifact, published
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import history_key, manifest_key, pointer_key, tensors_key, version_key
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.versions.commit import Cause
from registry.versions.projection import pointer_in
from registry.versions.promotion import promote, rollback
from tests.storage.crashes import Disk, State, record

TASK = a_task()
DIGESTS = {seed: an_artifact(TASK, seed).digest for seed in range(4)}
NEWEST = Retention(candidates=1, grace=timedelta(0))


class Noting(FolderStore):
    """Remembers every body that was to be stored at a key."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.bodies: dict[str, set[bytes]] = {}

    def create(self, key: str, body: bytes) -> None:
        self.bodies.setdefault(key, set()).add(body)
        super().create(key, body)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        self.bodies.setdefault(key, set()).add(body)
        super().replace(key, body, etag)


class Crash(NamedTuple):
    """The ledger's file, and what is left of the store, at one moment."""

    ledger: bytes
    state: State


class World:
    """A registry on such disks. `wrong` collects what no reader may find in any state."""

    def __init__(self, folder: Path, lazy: str = "") -> None:
        (folder / "store").mkdir()
        self.store, self.disk = Noting(folder / "store"), Disk(folder / "store", lazy)
        self.file = folder / "ledger.db"
        self.registry = Registry(Ledger(f"sqlite:///{self.file}"), self.store)
        self.wrong: set[str] = set()
        self.crashes: dict[int, Crash] = {}

    def look(self) -> None:
        ledger, copied = self.registry.ledger, None
        applied, history = ledger.applied("store", TASK.name, "production"), ledger.history(TASK.name, "production")
        begun = {intent.digest for intent in ledger.intents()}
        kept = [version for version in ledger.versions(TASK.name, None) if not version.collected]
        for whole in self.disk.states():
            if self.wrong:  # without syncs there are more states than anybody can look at
                return
            state = {key: body for key, body in whole.items() if not key.startswith(".")}
            self.wrong |= {f"{key} is torn" for key, body in state.items() if body not in self.store.bodies[key]}
            for digest in DIGESTS.values():
                if manifest_key(TASK.name, digest) in state and tensors_key(TASK.name, digest) not in state:
                    self.wrong.add("a manifest without its tensors")
            for version in kept:
                if manifest_key(TASK.name, version.digest) not in state:
                    self.wrong.add("a version of the ledger without a prompt")
                if not any("/records/" in key and version.digest in key for key in state):
                    self.wrong.add("a version of the ledger without a record in the store")
                if version.digest not in begun and version_key(TASK.name, version.number) not in state:
                    self.wrong.add("a publish that ended without its name")
            pointed = pointer_in(state.get(pointer_key(TASK.name, "production"), b""))
            if applied and (pointed is None or pointed.seq < applied.seq):
                self.wrong.add("a pointer behind what the ledger notes of it")
            if pointed:
                if pointed not in history or manifest_key(TASK.name, pointed.digest) not in state:
                    self.wrong.add("a pointer to what is not there")
                if history_key(TASK.name, "production", pointed.seq) not in state:
                    self.wrong.add("a pointer without its row")
            known = hash(frozenset(state.items()))
            if known not in self.crashes:
                copied = copied or copy_of(self.file)
                self.crashes[known] = Crash(copied, state)


def copy_of(file: Path) -> bytes:
    with sqlite3.connect(file) as source, sqlite3.connect(":memory:") as copy:
        source.backup(copy)
        return copy.serialize()


def publish_first(registry: Registry) -> None:
    published(registry, TASK, 0)


def promote_first(registry: Registry) -> None:
    promote(registry, TASK, 1, Cause("me", "the first"))


def publish_second(registry: Registry) -> None:
    published(registry, TASK, 1, DIGESTS[0])


def promote_second(registry: Registry) -> None:
    promote(registry, TASK, 2, Cause("me", "better"))


def roll_back(registry: Registry) -> None:
    rollback(registry, TASK.name, Cause("me", "complaints"))


def publish_others(registry: Registry) -> None:
    for seed in (2, 3):
        published(registry, TASK, seed, DIGESTS[0], "failed")


def collect_third(registry: Registry) -> None:
    collect(registry, NEWEST, apply=True)


VERBS: list[Callable[[Registry], None]] = [
    publish_first,
    promote_first,
    publish_second,
    promote_second,
    roll_back,
    publish_others,
    collect_third,
]


def live_through(folder: Path, patch: pytest.MonkeyPatch, lazy: str = "") -> tuple[World, dict[str, list[Crash]]]:
    """Run the verbs; return the world, and what a crash during each of them leaves."""
    world, crashes = World(folder, lazy), dict[str, list[Crash]]()
    with patch.context() as within:
        record(world.disk, within, world.look)
        for verb in VERBS:
            world.crashes.clear()
            verb(world.registry)
            world.look()
            crashes[verb.__name__] = list(world.crashes.values())
    world.registry.ledger.close()
    return world, crashes


def test_no_reader_finds_a_part_and_the_store_is_never_behind_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, crashes = live_through(tmp_path, monkeypatch)
    assert world.wrong == set()
    assert min(map(len, crashes.values())) >= 3


@pytest.mark.parametrize("lazy", ["files", "folders"])
def test_without_its_syncs_the_disk_is_seen_to_lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lazy: str) -> None:
    world = World(tmp_path, lazy)
    with monkeypatch.context() as within:
        record(world.disk, within, lambda: None)
        publish_first(world.registry)
    world.look()
    assert world.wrong, f"the test would not notice that {lazy} are not synced"


def test_a_rerun_brings_what_a_crash_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, crashes = live_through(tmp_path, monkeypatch)
    for verb in VERBS:
        for number, crash in enumerate(crashes[verb.__name__]):
            (folder := tmp_path / f"{verb.__name__}-{number}").mkdir()
            for key, body in crash.state.items():
                (folder / "store" / key).parent.mkdir(parents=True, exist_ok=True)
                (folder / "store" / key).write_bytes(body)
            (folder / "ledger.db").write_bytes(crash.ledger)
            with sqlite3.connect(folder / "ledger.db") as connection:  # a minute later
                connection.execute("UPDATE tombstone SET expires_at = 0")
            connection.close()
            after = Registry(Ledger(f"sqlite:///{folder}/ledger.db"), FolderStore(folder / "store"))
            verb(after)
            assert examine(after) == [], (verb.__name__, number)
            after.ledger.close()
            shutil.rmtree(folder)
