"""Detached processes: started in a session of their own, known by pid and start time, stopped as a tree."""

import os
import socket
import subprocess
from pathlib import Path

import psutil

from ptpipeline.records import Record

HOST = "127.0.0.1"
_PATIENCE = 20.0
_SAME_START = 2.0  # seconds: the start time is computed from the boot time, which clock corrections shift


class Process(Record):
    """A started process: its pid, its start time (seconds since the epoch, against reused pids), the port it serves."""

    pid: int
    created: float
    port: int | None = None


def spawn(command: list[str], environment: dict[str, str], log: Path, port: int | None = None) -> Process:
    """Start `command` so that it outlives the caller and its terminal; its output is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    return Process(pid=child.pid, created=psutil.Process(child.pid).create_time(), port=port)


def is_alive(process: Process) -> bool:
    """Whether it still runs; a foreign process under a reused pid, or one that only waits to be reaped, does
    not count.
    """
    return _handle(process) is not None


def stop(process: Process) -> None:
    """End the process and its descendants: SIGTERM, then SIGKILL for what is left after 20 s; foreign pids are not
    touched.
    """
    root = _handle(process)
    if root is None:
        return
    tree = _tree(root)
    sockets = _socket_files(root)
    _signal([root], "terminate")
    _, left = psutil.wait_procs(tree, timeout=_PATIENCE)
    _signal(left, "kill")
    psutil.wait_procs(left, timeout=_PATIENCE)
    for path in sockets:
        path.unlink(missing_ok=True)


def memory(process: Process) -> int:
    """Resident bytes of the process and its descendants; 0 where it does not run."""
    root = _handle(process)
    total = 0
    for member in _tree(root) if root else []:
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return total


def serves(process: Process) -> bool:
    """Whether it, and nobody else, listens on its port."""
    root = _handle(process)
    if root is None:
        return False
    try:
        sockets = [found for member in _tree(root) for found in member.net_connections("tcp")]
    except psutil.Error:
        return False
    return any(found.status == psutil.CONN_LISTEN and found.laddr.port == process.port for found in sockets)


def is_free(port: int) -> bool:
    """Whether a server could listen on that loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not count
        try:
            probe.bind((HOST, port))
            probe.listen()
        except OSError:
            return False
    return True


def _handle(process: Process) -> psutil.Process | None:
    try:
        found = psutil.Process(process.pid)
        same = abs(found.create_time() - process.created) < _SAME_START
        return found if same and found.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return [root]


def _socket_files(root: psutil.Process) -> list[Path]:
    """The socket files that it made: SeaweedFS leaves its own in the temporary folder."""
    try:
        addresses = [found.laddr for found in root.net_connections("unix")]
    except psutil.Error:
        return []
    return [Path(address) for address in addresses if isinstance(address, str) and os.path.isabs(address)]


def _signal(processes: list[psutil.Process], verb: str) -> None:
    for process in processes:
        try:
            getattr(process, verb)()
        except psutil.NoSuchProcess:
            continue
