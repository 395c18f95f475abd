"""Files and folders that their owner alone can read: training texts, ledgers, logs and keys."""

import errno
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ptpipeline.durable import publish
from ptpipeline.errors import SettingsError

UMASK = 0o077

log = logging.getLogger("ptpipeline.private")


@contextmanager
def private_files() -> Iterator[None]:
    """Let nobody but their owner read the files that this process and its children write meanwhile."""
    before = os.umask(UMASK)
    try:
        yield
    finally:
        os.umask(before)


def open_regular(path: Path) -> BinaryIO:
    """Open a file to be read, which a setting or an option names; raises OSError, also if it is no regular file.

    A pipe, which keeps its reader waiting, and a device, which has no end, are such.
    """
    file = open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def open_own(path: Path) -> BinaryIO:
    """Open a file that says what this user's programs do, as `open_regular` does; raises OSError also if it belongs to
    another user but root, who could have put it there.
    """
    file = open_regular(path)
    if not is_own(os.fstat(file.fileno())):
        file.close()
        raise OSError(errno.EPERM, "it is another user's")
    return file


def is_own(found: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user or to root; root may use everybody's."""
    return os.geteuid() == 0 or found.st_uid in (0, os.geteuid())


def write_private(path: Path, body: bytes, mode: int = 0o600) -> None:
    """Write a file that its owner alone can read, or replace it: durably, and whole or not at all.

    mode: who else may read it, if somebody decided that before.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            os.fchmod(descriptor, mode)
        publish(Path(temporary), path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Give a folder where TMPDIR says, or in /tmp, for as long as the block lasts. A disk that is full there is told
    with the folder's name: the system's own error of a write names nothing.
    """
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
                error.filename = f"{folder} (TMPDIR says where)"
            raise


def make_private(home: Path) -> None:
    """Make the folder if it is missing, and take the rights of others on it away: it holds training texts and keys.

    Raises SettingsError if that is not possible, or the folder belongs to everybody, such as /tmp.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = home.stat()
        if found.st_uid != os.geteuid() or not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return
        if found.st_mode & stat.S_ISVTX or home == home.parent:
            raise SettingsError(f"PTP_HOME={home} is a folder of all users: name one of your own, such as {home}/ptp")
        home.chmod(stat.S_IMODE(found.st_mode) & stat.S_IRWXU)
    except OSError as error:
        raise SettingsError(
            f"PTP_HOME={home}: expected a folder that is yours ({error.strerror}); name another one"
        ) from None
    log.warning("%s could be opened by other users; it is private now (mode 0700)", home)
