"""Who listens at a port of this machine: a password is for the servers of its owner alone, whoever has their ports."""

import os
from collections.abc import Iterator, Set
from pathlib import Path

_TABLES = (
    Path("/proc/net/tcp"),
    Path("/proc/net/tcp6"),
)  # missing where the system is not Linux: nobody is known there
_LISTENS = "0A"
# Whoever listens at these is reached at 127.0.0.1: itself, all addresses, and both in IPv6, as the kernel writes them.
_REACHED = ("0100007F", "00000000", "0000000000000000FFFF00000100007F", "0" * 32)


def find_listeners(port: int) -> set[int]:
    """Return the ids of the users whose programs take connections to 127.0.0.1 at the port."""
    places = {f"{address}:{port:04X}" for address in _REACHED}
    return {int(user) for place, state, user in _read_sockets() if place in places and state == _LISTENS}


def find_strangers(port: int, owner: int) -> set[int]:
    """Return those of them who are strangers to the owner."""
    return leave_strangers(find_listeners(port), owner)


def leave_strangers(users: Set[int], owner: int) -> set[int]:
    """Return those of the users who are neither the owner nor root, who may read the owner's secrets anyway."""
    return {*users} - {owner, 0}


def is_running(pid: int) -> bool:
    """Return whether that process runs, and this user may end it."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _read_sockets() -> Iterator[tuple[str, str, str]]:
    """Yield place, state and user of each socket."""
    for table in _TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, place, _, state, _, _, _, user, *_ = line.split()
            yield place, state, user
