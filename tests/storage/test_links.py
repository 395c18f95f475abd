"""No link in a folder store is followed: nothing outside is read, replaced, deleted or listed."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ptpipeline.errors import ArtifactError, NotFound, PtpError
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


@contextmanager
def exchanging(folder: Path, target: Path) -> Iterator[None]:
    """While the block runs, the folder is exchanged with a link to the target, back and forth, as fast as it goes."""
    link, beside, ended = folder.with_name("link"), folder.with_name("beside"), threading.Event()
    link.symlink_to(target)

    def exchange() -> None:
        while not ended.is_set():
            for source, place in ((folder, beside), (link, folder), (folder, link), (beside, folder)):
                source.rename(place)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_folder_that_is_exchanged_for_a_link_meanwhile_leads_nowhere(store: FolderStore, outside: Path) -> None:
    read, left = set[bytes](), set[str]()
    with exchanging(store.root / "prompts/mood", outside):
        for number in range(400):
            with suppress(PtpError):
                read.add(store.read("prompts/mood/secret").body)
            with suppress(PtpError):
                store.create(f"prompts/mood/{number}", b"new")
            with suppress(PtpError):
                store.delete("prompts/mood/secret")
            left |= {path.name for path in outside.iterdir()} ^ {"secret"}
            (outside / "secret").write_bytes(SECRET)
    assert (read, left) == (set(), set())


def test_a_listing_is_not_led_out_either(store: FolderStore, outside: Path) -> None:
    store.create("prompts/mood/deep/old", b"old")
    (outside / "deep").mkdir()
    (outside / "deep/theirs").touch()
    with exchanging(store.root / "prompts/mood", outside):
        found = {key for _ in range(400) for key in store.keys("prompts")}
    assert not [key for key in found if key.endswith(("secret", "theirs"))]
