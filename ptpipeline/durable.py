"""What survives a power loss: a file's bytes once it is synced, its name once the folder above it is."""

import errno
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file's bytes durable, or the names in a folder: what was made, linked, renamed or removed there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make(folder: Path, rights: int = 0o777) -> None:
    """Create the folder and those above it that are missing, each durably and with these rights, less the umask."""
    if not folder.is_dir():
        make(folder.parent, rights)
        folder.mkdir(mode=rights, exist_ok=True)
        sync(folder.parent)


def publish(partial: Path, target: Path) -> None:
    """Rename a file or a folder to its place, durably and after all that it holds: it is there whole, or not at all.

    Raises FileExistsError for a device, a pipe or a socket in its place: root would replace that of all programs.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise FileExistsError(errno.EEXIST, "a device, a pipe or a socket is there", str(target))
    for folder, _, files in os.walk(partial, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    if partial.is_file():
        sync(partial)
    partial.replace(target)
    sync(target.parent)
