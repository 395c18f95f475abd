"""A folder survives a power loss: what is written is synced before it is seen, and so is every new name."""

import os
import time
from collections.abc import Callable
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import pytest

from ptpipeline.errors import PreconditionFailed
from ptpipeline.storage import FolderStore
from tests.storage.crashes import locate

BODY, OTHER = b"the new body", b"another body"
Event = tuple[str, str]


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What reaches the file system, in order: syncs, links, renames, removals and new folders, by their names.

    A file under `.put/` is called by what it holds at that moment.
    """
    found: list[Event] = []

    def name_of(path: Any) -> str:
        path = Path(path)
        if path.parent.name == ".put":
            return path.read_bytes().decode()
        return str(path.relative_to(tmp_path))

    def note(what: str, name: Callable[..., str]) -> None:
        real = getattr(os, what)

        def noting(*args: Any, **options: Any) -> Any:
            called = name(*locate(args, options))
            answer = real(*args, **options)
            found.append((what, called))
            return answer

        monkeypatch.setattr(os, what, noting)

    note("fsync", lambda descriptor: name_of(os.readlink(f"/proc/self/fd/{descriptor}")))
    for what in ("link", "rename"):
        note(what, lambda source, target: f"{name_of(source)} -> {name_of(target)}")
    for what in ("unlink", "mkdir"):
        note(what, lambda path, *_: name_of(path))
    return found


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """A store that holds one object already, so that its folders are there."""
    made = FolderStore(tmp_path)
    made.create("p/old", b"old")
    return made


def test_a_new_object_is_synced_whole_before_it_is_seen(store: FolderStore, events: list[Event]) -> None:
    store.create("p/new", BODY)
    text = BODY.decode()
    assert events == [("fsync", text), ("link", f"{text} -> p/new"), ("fsync", "p"), ("unlink", text)]


def test_a_replaced_object_is_synced_whole_before_it_is_seen(store: FolderStore, events: list[Event]) -> None:
    store.replace("p/old", BODY, store.read("p/old").etag)
    text = BODY.decode()
    assert [event for event in events if event[0] != "unlink"] == [
        ("fsync", text),
        ("rename", f"{text} -> p/old"),
        ("fsync", "p"),
    ]


def test_a_deletion_is_synced(store: FolderStore, events: list[Event]) -> None:
    store.delete("p/old")
    assert events == [("unlink", "p/old"), ("fsync", "p")]


def test_an_object_that_is_there_already_is_synced_all_the_same(store: FolderStore, events: list[Event]) -> None:
    """Its writer may not have come so far."""
    store.create("p/old", b"old")
    assert ("fsync", "p") in events


def test_each_new_folder_is_synced_into_the_one_above(store: FolderStore, events: list[Event]) -> None:
    store.create("p/one/two/new", BODY)
    made = [event for event in events if event[0] == "mkdir" or event[1] in ("p", "p/one")]
    assert made == [("mkdir", "p/one"), ("fsync", "p"), ("mkdir", "p/one/two"), ("fsync", "p/one")]


def test_a_replace_of_what_changed_writes_nothing(store: FolderStore, events: list[Event]) -> None:
    etag = store.read("p/old").etag
    store.replace("p/old", OTHER, etag)
    events.clear()
    with pytest.raises(PreconditionFailed, match="changed since it was read"):
        store.replace("p/old", BODY, etag)
    assert (events, store.read("p/old").body) == ([], OTHER)


def test_a_replace_of_what_is_gone_writes_nothing(store: FolderStore) -> None:
    etag = store.read("p/old").etag
    store.delete("p/old")
    with pytest.raises(PreconditionFailed, match="changed since it was read"):
        store.replace("p/old", BODY, etag)
    assert not store.exists("p/old")


@pytest.mark.parametrize("put", ["replace", "delete"])
def test_a_change_waits_for_another_that_is_under_way(store: FolderStore, tmp_path: Path, put: str) -> None:
    from concurrent.futures import ThreadPoolExecutor, wait

    from filelock import FileLock

    etag = store.read("p/old").etag
    change = (lambda: store.replace("p/old", BODY, etag)) if put == "replace" else (lambda: store.delete("p/old"))
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / ".lock"):
            waiting = pool.submit(change)
            assert wait([waiting], 0.2).not_done
            assert store.read("p/old").body == b"old"
        waiting.result()


@pytest.mark.parametrize(("seconds", "stays"), [(3500, True), (3700, False)])
def test_what_a_killed_writer_left_is_removed_after_an_hour(tmp_path: Path, seconds: float, stays: bool) -> None:
    left = tmp_path / ".put" / "of-somebody"
    left.parent.mkdir()
    left.write_bytes(b"half")
    os.utime(left, (time.time() - seconds,) * 2)
    FolderStore(tmp_path).create("p/new", BODY)
    assert left.exists() == stays


def test_an_object_of_the_same_bytes_keeps_its_age(store: FolderStore, tmp_path: Path) -> None:
    os.utime(tmp_path / "p" / "old", (1_000_000,) * 2)
    store.create("p/old", b"old")
    (listed,) = store.list_objects("p")
    assert (listed.modified.timestamp(), listed.bytes) == (1_000_000, 3)


def test_a_create_never_writes_over_other_bytes(store: FolderStore) -> None:
    with pytest.raises(PreconditionFailed, match="exists already with other content"):
        store.create("p/old", BODY)
    assert store.read("p/old").body == b"old"


def test_a_live_writer_keeps_its_file_whatever_the_clock_says(tmp_path: Path) -> None:
    left = tmp_path / ".put" / "of-somebody"
    left.parent.mkdir()
    with left.open("xb") as file:
        flock(file, LOCK_EX)
        os.utime(left, (1_000_000,) * 2)
        FolderStore(tmp_path).create("p/new", BODY)
        assert left.exists()
    FolderStore(tmp_path).create("p/other", BODY)
    assert not left.exists()
