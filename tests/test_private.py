"""The project's folder: whose rights are taken away, which folders are no home, and the umask of a command."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptpipeline.errors import SettingsError
from ptpipeline.private import make_private, open_regular, private_files


@pytest.fixture(autouse=True)
def _no_umask() -> Iterator[None]:
    """A umask that hides nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_are_private_until_the_block_ends_however_it_ends(tmp_path: Path) -> None:
    def write() -> None:
        with private_files():
            (tmp_path / "inside").touch()
            raise KeyError

    with pytest.raises(KeyError):
        write()
    (tmp_path / "outside").touch()
    assert (mode(tmp_path / "inside"), mode(tmp_path / "outside")) == (0o600, 0o666)


def test_a_missing_folder_is_made_for_its_owner_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_private(tmp_path / "home")
    assert (mode(tmp_path / "home"), caplog.text) == (0o700, "")


def test_no_right_of_the_owner_is_added(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o577)
    make_private(tmp_path / "home")
    assert mode(tmp_path / "home") == 0o500


@pytest.mark.skipif(os.geteuid() != 0, reason="others leave the root of the file system alone anyway")
def test_the_root_of_the_file_system_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "chmod", lambda *_: pytest.fail("its rights were changed"))
    with pytest.raises(SettingsError, match="PTP_HOME=/ is a folder of all users"):
        make_private(Path("/"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a folder of another user")
def test_the_rights_on_another_users_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    os.chown(tmp_path / "home", 65534, 65534)
    make_private(tmp_path / "home")
    assert mode(tmp_path / "home") == 0o755


def test_what_is_no_folder_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(SettingsError, match="expected a folder that is yours"):
        make_private(tmp_path / "home" / "below")


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "socket", "folder"])
def test_what_would_keep_its_reader_waiting_or_never_ends_is_not_opened(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to a pipe").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "socket"))
        with pytest.raises(OSError, match=r"not a regular file|directory|No such device"):
            open_regular(Path("/dev/zero") if kind == "device" else tmp_path / kind)
