"""A folder as object store: full, unwritable, killed in the middle of a put."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ptpipeline.errors import SettingsError
from ptpipeline.storage import FolderStore
from tests.processes import in_child

LIMIT = 4096
WRITER = """
import sys, hashlib
from pathlib import Path
from ptpipeline.storage import FolderStore
store, number = FolderStore(Path(sys.argv[1])), 0
while True:
    body = b"%d " % number * 200_000
    store.create(f"p/{number}-{hashlib.sha256(body).hexdigest()[:16]}", body)
    store.replace("pointer", body, store.read("pointer").etag)
    print(number, flush=True)
    number += 1
"""
FILLER = """
import sys
from pathlib import Path
from ptpipeline.errors import SettingsError
from ptpipeline.storage import FolderStore
store = FolderStore(Path(sys.argv[1]))
store.create("p/old", b"old")
large = b"x" * 100_000
for put in (lambda: store.create("p/new", large), lambda: store.replace("p/old", large, store.read("p/old").etag)):
    try:
        put()
    except SettingsError as error:
        print(error)
left = list((Path(sys.argv[1]) / ".put").iterdir())
print(store.read("p/old").body, [(item.key, item.bytes) for item in store.list_objects("p")], left)
store.create("p/small", b"there is room for little")
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter and read, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def puts() -> None:
        store = FolderStore(tmp_path)
        store.create("p/old", b"old")
        etag = store.read("p/old").etag
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (LIMIT, LIMIT)
        )  # the kernel takes the first bytes and refuses the rest
        for put in (
            lambda: store.create("p/new", b"x" * 2 * LIMIT),
            lambda: store.replace("p/old", b"x" * 2 * LIMIT, etag),
        ):
            with pytest.raises(
                SettingsError, match=r"cannot write p/.*make room there, or name another with PTP_STORE"
            ):
                put()

    in_child(puts)
    store = FolderStore(tmp_path)
    assert store.read("p/old").body == b"old"
    assert list(store.keys("p")) == ["p/old"]
    assert list((tmp_path / ".put").iterdir()) == []


def test_a_full_disk_leaves_nothing_torn(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=64k none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no process mount a file system of its own")
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", FILLER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [("No space left on device; make room there" in line) for line in lines] == [True, True, False]
    assert lines[2] == "b'old' [('p/old', 3)] []"


def test_a_folder_that_may_only_be_read_is_read(open_folder: Path) -> None:
    FolderStore(open_folder).create("p/a", b"one")

    def use() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # nobody: no mode stops root
        store = FolderStore(open_folder)
        assert (store.read("p/a").body, list(store.keys("p"))) == (b"one", ["p/a"])
        etag = store.read("p/a").etag
        for doing, call in {
            "write p/b": lambda: store.create("p/b", b""),
            "write p/a": lambda: store.replace("p/a", b"", etag),
            "delete p/a": lambda: store.delete("p/a"),
        }.items():
            with pytest.raises(
                SettingsError,
                match=rf"cannot {doing}: Permission denied; repair the folder, or name another with PTP_STORE",
            ):
                call()

    for path in [open_folder, *open_folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    in_child(use)


def test_an_object_cannot_be_a_folder(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.create("a", b"one")
    with pytest.raises(SettingsError, match="cannot write a/b"):
        store.create("a/b", b"two")
    store.delete("a/b")
    assert store.read("a").body == b"one"


@pytest.mark.parametrize("put", ["create", "replace"])
def test_a_writer_killed_within_a_write_leaves_the_old_state(tmp_path: Path, put: str) -> None:
    store = FolderStore(tmp_path)
    store.create("p/old", b"old")
    etag = store.read("p/old").etag

    def die() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills us in the middle of our own write
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
        if put == "create":
            store.create("p/new", b"x" * 2 * LIMIT)
        else:
            store.replace("p/old", b"x" * 2 * LIMIT, etag)

    in_child(die, ends=-signal.SIGXFSZ)
    assert [path.stat().st_size for path in (tmp_path / ".put").iterdir()] == [LIMIT]
    assert {key: store.read(key).body for key in store.keys("p")} == {"p/old": b"old"}
    store.create("p/new", b"new")
    store.replace("p/old", b"newer", etag)


def test_a_killed_writer_leaves_whole_objects(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.create("pointer", b"first")
    for round_ in range(4):
        shutil.rmtree(tmp_path / "p", ignore_errors=True)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            acknowledged = int(writer.stdout.readline())
            time.sleep(0.013 * round_)
            writer.kill()
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
        written = {int(item.key[2:].split("-")[0]): store.read(item.key).body for item in store.list_objects("p")}
        assert set(written) >= set(range(acknowledged + 1))
        assert all(body == b"%d " % number * 200_000 for number, body in written.items())
        assert store.read("pointer").body in (written[acknowledged], written.get(acknowledged + 1))


def test_what_killed_writers_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.create("a", b"one")
    old, new = tmp_path / ".put" / "old", tmp_path / ".put" / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    FolderStore(tmp_path).create("b", b"two")
    assert (old.exists(), new.exists()) == (False, True)
    assert list(FolderStore(tmp_path / ".put").keys("none")) == []


def written(store: FolderStore) -> None:
    store.create("prompts/two", b"2")


def only_read(store: FolderStore) -> None:
    store.read("prompts/one")


@pytest.mark.parametrize(("use", "left"), [(written, False), (only_read, False), (only_read, True)])
def test_a_folder_that_went_is_no_empty_store(tmp_path: Path, use: Callable[[FolderStore], None], left: bool) -> None:
    """Its disk was unmounted, which may leave an empty folder: a reader would say that nothing is registered, a writer
    would begin a second store.
    """
    FolderStore(tmp_path / "store").create("prompts/one", b"1")
    store, away = FolderStore(tmp_path / "store"), tmp_path / "away"
    use(store)
    store.root.rename(away)
    if left:
        store.root.mkdir()
    for ask in (
        lambda: store.read("prompts/one"),
        lambda: store.exists("prompts/one"),
        lambda: list(store.list_objects("prompts")),
        lambda: store.create("other/two", b"2"),
        lambda: store.delete("prompts/one"),
    ):
        why = r"is empty and was not: is its disk mounted\?" if left else "is gone"
        with pytest.raises(SettingsError, match=f"the folder {why}; repair the folder, or name another"):
            ask()
    assert not store.root.exists() or os.listdir(store.root) == []
    away.rename(store.root)
    assert store.read("prompts/one").body == b"1"


def test_a_folder_that_was_never_there_is_an_empty_store(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    assert list(store.list_objects("prompts")) == []
    (tmp_path / "store").mkdir()
    assert list(store.list_objects("prompts")) == []
    store.create("prompts/one", b"1")
    assert list(store.keys("prompts")) == ["prompts/one"]


def test_a_file_in_the_place_of_the_folder_is_no_empty_store(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    for place in (tmp_path / "store", tmp_path / "store" / "below"):
        with pytest.raises(SettingsError, match="cannot list prompts: Not a directory"):
            list(FolderStore(place).list_objects("prompts"))
