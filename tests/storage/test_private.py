"""What a folder store and `write_private` write is its owner's alone, whatever the umask; tried by another user."""

import errno
import logging
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptpipeline.private import write_private
from ptpipeline.storage import FolderStore
from registry.ledger.ledger import Ledger


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter and read, under a umask that hides nothing."""
    before = os.umask(0)
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)
    os.umask(before)


def modes(folder: Path) -> set[tuple[str, str]]:
    """Kind and rights of everything below the folder."""
    return {(oct(stat.S_IFMT(p.lstat().st_mode)), oct(stat.S_IMODE(p.lstat().st_mode))) for p in folder.rglob("*")}


def test_a_new_store_and_all_in_it_is_its_owners(folder: Path) -> None:
    FolderStore(folder / "home" / "store").create("snapshots/a/b", b"a text")
    made = modes(folder)
    assert made <= {("0o40000", "0o700"), ("0o100000", "0o600")}
    assert len(made) == 2


def test_a_new_ledger_and_what_sqlite_puts_beside_it_is_its_owners(folder: Path) -> None:
    ledger = Ledger(f"sqlite:///{folder / 'home' / 'ledger.db'}")
    ledger.intend("mood", "a" * 64)
    names = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in (folder / "home").iterdir()}
    assert {names["ledger.db"], names["ledger.db-wal"], names["ledger.db-shm"]} == {"0o600"}
    assert oct(stat.S_IMODE((folder / "home").stat().st_mode)) == "0o700"
    ledger.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root acts for another user")
def test_another_user_reads_neither_texts_nor_ledger(folder: Path) -> None:
    store = FolderStore(folder / "store")
    store.create("snapshots/a/b", b"a private text")
    Ledger(f"sqlite:///{folder / 'ledger.db'}").close()
    places = [folder / "store/snapshots/a/b", folder / "store", folder / "ledger.db"]
    for place in places:
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(place)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.stdout, "Permission denied" in done.stderr) == ("", True)


def test_a_folder_that_was_opened_to_others_stays_open_and_says_so_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.umask(0o077)
    with caplog.at_level(logging.WARNING):
        store = FolderStore(folder)
        store.create("prompts/a", b"one")
        store.create("prompts/b", b"two")
    assert [record.message for record in caplog.records] == [
        f"file://{folder}: every user of this machine may enter it; `chmod o= {folder}` keeps its texts private"
    ]
    assert modes(folder / "prompts") == {("0o100000", "0o644")}


def test_what_ptp_writes_is_its_users(folder: Path) -> None:
    code = (
        "import pathlib, sys; from flows.cli import app, main\n@app.command()\ndef write(): pathlib.Path('a').touch()\n"
    )
    subprocess.run([sys.executable, "-c", f"{code}main(['write'])"], cwd=folder, check=True)
    assert oct(stat.S_IMODE((folder / "a").stat().st_mode)) == "0o600"


def test_a_private_file_is_its_owners_and_replaced_whole(folder: Path) -> None:
    for body in (b"one", b"two"):
        write_private(folder / "keys", body)
        assert (folder / "keys").read_bytes() == body
        assert modes(folder) == {("0o100000", "0o600")}


def test_a_private_file_that_cannot_be_written_stays_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_private(folder / "keys", b"one")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_private(folder / "keys", b"two")
    assert [path.read_bytes() for path in folder.iterdir()] == [b"one"]


def test_private_files_are_written_in_one_place() -> None:
    root = Path(__file__).parents[2]
    modules = [path for name in ("ptpipeline", "registry", "flows") for path in (root / name).rglob("*.py")]
    found = {path.relative_to(root).as_posix() for path in modules if re.search(r"mkstemp\(|O_EXCL", path.read_text())}
    assert found == {
        "ptpipeline/private.py",
        "registry/ledger/backup.py",  # mode 0600 too, and large: written as it is read
        "ptpipeline/packages.py",  # files of packages, which are public
        "registry/ledger/database.py",  # an empty file, which SQLite fills
    }
