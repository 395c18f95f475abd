"""The project's folder: whose rights are taken away, which folders are no home, and the umask of a command."""

import os
import resource
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptpipeline.errors import SettingsError
from ptpipeline.private import make_private, open_own, open_regular, private_files, scratch
from tests.processes import in_child


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize(("owner", "taken"), [(0, True), (65534, True), (65533, False)])
def test_a_file_of_another_user_but_root_is_not_taken(owner: int, taken: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:  # which others may enter, unlike pytest's own
        path = Path(folder, "stack.json")
        path.write_bytes(b"{}")
        os.chown(path, owner, owner)
        Path(folder).chmod(0o755)

        def as_nobody() -> None:
            os.setuid(65534)
            try:
                open_own(path).close()
            except PermissionError as error:
                sys.exit(2 if error.strerror == "it is another user's" else 1)

        in_child(as_nobody, ends=0 if taken else 2)
        open_own(path).close()  # root may


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


def test_a_disk_that_is_full_where_tmpdir_says_is_told_with_its_place() -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        with pytest.raises(OSError) as raised, scratch("ptp-full-") as folder:  # noqa: PT011
            (folder / "config.json").write_bytes(b"{}")
        assert raised.value.filename == f"{folder} (TMPDIR says where)"

    in_child(fill)
