"""The ports and sockets that the processes of a running stack listen on, found by looking at them."""

import stat
from pathlib import Path
from typing import NamedTuple

import psutil

from flows.local.stack import Stack


class Port(NamedTuple):
    """A TCP port: who listens there, and on which address."""

    server: str
    address: str
    number: int


def find_ports(stack: Stack) -> list[Port]:
    """Every TCP port on which a process of the stack listens, on any address."""
    found = {
        Port(name, one.laddr.ip, one.laddr.port)
        for name, process in _trees(stack)
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
    return sorted(found)


def find_sockets(stack: Stack) -> list[Path]:
    """Every unix socket that a process of the stack has bound to a file."""
    found = {
        (Path(process.cwd()) / one.laddr).resolve()
        for _, process in _trees(stack)
        for one in process.net_connections("unix")
        if isinstance(one.laddr, str) and one.laddr and not one.laddr.startswith(("@", "\0"))
    }
    return sorted(path for path in found if path.exists() and stat.S_ISSOCK(path.stat().st_mode))


def _trees(stack: Stack) -> list[tuple[str, psutil.Process]]:
    roots = [(name, psutil.Process(process.pid)) for name, process in stack.processes.items()]
    return [(name, one) for name, root in roots for one in [root, *root.children(recursive=True)]]
