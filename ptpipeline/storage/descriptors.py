"""Names within open folders: whoever may write to a folder cannot lead us out of it by a link in the place of a folder.

Every `folder` is the descriptor of an open one. No link is followed.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from typing import BinaryIO, NamedTuple

_PASS = getattr(os, "O_PATH", os.O_RDONLY)  # to go through a folder, one need not be allowed to list it


class Place(NamedTuple):
    """A name within an open folder."""

    folder: int
    name: str


@contextmanager
def open_folder(name: str, folder: int | None = None, flags: int = _PASS) -> Iterator[int]:
    """Open a folder within another one, or that of a whole path, which may be a link; raises OSError."""
    own = 0 if folder is None else os.O_NOFOLLOW
    descriptor = os.open(name, flags | own | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_itself(name: str, folder: int) -> BinaryIO:
    """Open the file itself, not what a link names, and wait for nobody at the other end of a pipe; raises OSError."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return open(os.open(name, flags, dir_fd=folder), "rb")


@contextmanager
def entries(folder: int, name: str) -> Iterator[tuple[int, list[os.DirEntry[str]]]]:
    """Open a folder; yield it and what lies in it, by name, without our own hidden files: nothing if it is no folder,
    or a link.
    """
    with ExitStack() as opened:
        try:
            below = opened.enter_context(open_folder(name, folder, os.O_RDONLY))
        except (FileNotFoundError, NotADirectoryError):
            yield -1, []
            return
        found = sorted(os.scandir(below), key=lambda entry: entry.name)
        yield below, [entry for entry in found if not entry.name.startswith(".")]


def sync_names(folder: int) -> None:
    """Make the names in the folder durable."""
    with open_folder(".", folder, os.O_RDONLY) as readable:
        os.fsync(readable)


def is_link(name: str, folder: int) -> bool:
    """Whether a link is there."""
    with suppress(FileNotFoundError):
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def is_locked(name: str, folder: int) -> bool:
    """Whether a process that lives holds a lock on the file; a folder counts as locked."""
    try:
        with open_itself(name, folder) as file:
            flock(file, LOCK_EX | LOCK_NB)
    except (BlockingIOError, IsADirectoryError):
        return True
    except OSError:  # gone, or a link
        pass
    return False
