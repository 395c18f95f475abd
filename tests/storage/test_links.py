"""No link in a folder store is followed: nothing outside is read, replaced, deleted or listed."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.storage import FolderStore
from ptpipeline.storage.folder import _etag

SECRET = b"of somebody else"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    made = FolderStore(tmp_path / "store")
    made.create("prompts/mood/old", b"old")
    return made


CALLS: dict[str, Callable[[FolderStore, str], object]] = {
    "read": lambda store, key: store.read(key),
    "create": lambda store, key: store.create(key, SECRET),
    "replace": lambda store, key: store.replace(key, b"mine", _etag(SECRET)),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_link_to_a_file_is_no_object(store: FolderStore, outside: Path, call: str) -> None:
    (store.root / "prompts/mood/secret").symlink_to(outside / "secret")
    with pytest.raises(ArtifactError, match="prompts/mood/secret: a symbolic link, which this store"):
        CALLS[call](store, "prompts/mood/secret")
    assert not store.exists("prompts/mood/secret")
    assert (outside / "secret").read_bytes() == SECRET


@pytest.mark.parametrize("call", [*CALLS, "exists", "delete", "list"])
def test_a_link_to_a_folder_is_not_entered(store: FolderStore, outside: Path, call: str) -> None:
    (store.root / "prompts/linked").symlink_to(outside)
    more = {"exists": FolderStore.exists, "delete": FolderStore.delete, "list": lambda s, key: [*s.keys(key)]}
    with pytest.raises(ArtifactError, match="prompts/linked: a symbolic link, which this store"):
        (CALLS | more)[call](store, "prompts/linked/secret")
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == SECRET


def test_a_deletion_removes_the_link_alone(store: FolderStore, outside: Path) -> None:
    for name, target in {"file": outside / "secret", "folder": outside, "nothing": outside / "gone"}.items():
        (store.root / f"prompts/mood/{name}").symlink_to(target)
        store.delete(f"prompts/mood/{name}")
    assert [*store.keys("prompts")] == ["prompts/mood/old"]
    assert (outside / "secret").read_bytes() == SECRET


def test_a_listing_names_links_and_enters_none(store: FolderStore, outside: Path) -> None:
    (store.root / "prompts/linked").symlink_to(outside)
    (store.root / "prompts/mood/all").symlink_to("/")
    (store.root / "snapshots").symlink_to(outside)
    assert [*store.keys("prompts")] == ["prompts/linked", "prompts/mood/all", "prompts/mood/old"]
    assert [*store.keys("snapshots")] == ["snapshots"]


def test_what_killed_writers_left_is_not_swept_behind_a_link(tmp_path: Path, outside: Path) -> None:
    os.utime(outside / "secret", (0, 0))
    (tmp_path / "store").mkdir()
    (tmp_path / "store/.put").symlink_to(outside)
    with pytest.raises(ArtifactError, match=r"\.put: a symbolic link"):
        FolderStore(tmp_path / "store").create("prompts/new", b"new")
    assert (outside / "secret").read_bytes() == SECRET


def test_a_pipe_or_a_socket_is_no_object(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(store.root / "prompts/mood/pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(store.root / "prompts/mood")  # the name of a socket is short
        server.bind("socket")
        for name in ("pipe", "socket"):
            with pytest.raises(ArtifactError, match="no regular file"):
                store.read(f"prompts/mood/{name}")


def test_a_store_that_a_link_names_is_a_store(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    FolderStore(tmp_path / "here").create("prompts/a", b"one")
    assert FolderStore(tmp_path / "there").read("prompts/a").body == b"one"


def test_a_listing_goes_no_deeper_than_keys_do(store: FolderStore) -> None:
    (store.root / "prompts/deep" / "/".join("x" * 100)).mkdir(parents=True)
    deep, old = store.keys("prompts")
    assert (deep.count("/"), old) == (17, "prompts/mood/old")


def test_a_store_without_objects_lists_none(tmp_path: Path) -> None:
    assert [*FolderStore(tmp_path / "new").keys("prompts")] == []
    with pytest.raises(NotFound):
        FolderStore(tmp_path / "new").read("prompts/a")
