"""A small disk that one process has for itself, so that it may be full."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000  # of <linux/sched.h>
_RECURSIVE, _PRIVATE = 0x4000, 0x40000  # of <linux/mount.h>


def mount(folder: Path, megabytes: int) -> bool:
    """Give this process, which has one thread, a disk of that size at `folder`; whether the machine lets it."""
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    if libc.unshare(_NEW_MOUNTS):  # only root may, or who is root of users of its own
        if libc.unshare(_NEW_USER | _NEW_MOUNTS):
            return False
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            Path("/proc/self", name).write_text(line)
    apart = libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None) == 0
    return apart and libc.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={megabytes}m".encode()) == 0


def fill(disk: Path) -> None:
    """Write files until not one byte more fits."""
    for number, size in enumerate((1 << 16, 1 << 12, 1)):
        with (disk / f"ballast-{number}").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * size):
                pass


def empty(disk: Path) -> None:
    """Remove what `fill` wrote."""
    for ballast in disk.glob("ballast-*"):
        ballast.unlink()
