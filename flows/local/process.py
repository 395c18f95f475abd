"""Detached processes: each has its own session, is known by pid and start time, and is stopped with its children."""

import os
import socket
import subprocess
from pathlib import Path

import psutil

from ptpipeline.records.base import Record

HOST = "127.0.0.1"
_STOP_SECONDS = 20.0
_SAME_START = 2.0  # seconds: the start time is computed from the boot time, which clock corrections shift


class Process(Record):
    """A started process: its pid, its start time (seconds since the epoch, against reused pids), the port it serves."""

    pid: int
    created: float
    port: int | None = None


def spawn(command: list[str], environment: dict[str, str], log: Path, port: int | None = None) -> Process:
    """Start `command` so that it outlives the caller and its terminal; append its output to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    return Process(pid=child.pid, created=psutil.Process(child.pid).create_time(), port=port)


def is_alive(process: Process) -> bool:
    """Whether it still runs; a foreign process with the same pid and a zombie do not count."""
    return _find(process) is not None


def stop(process: Process) -> None:
    """End the process and its descendants: SIGTERM, then SIGKILL for those that still run after 20 s.

    A foreign process with the same pid is left alone.
    """
    root = _find(process)
    if root is None:
        return
    tree = _tree(root)
    sockets = _socket_files(root)
    _signal([root], "terminate")
    _, running = psutil.wait_procs(tree, timeout=_STOP_SECONDS)
    _signal(running, "kill")
    psutil.wait_procs(running, timeout=_STOP_SECONDS)
    for path in sockets:
        path.unlink(missing_ok=True)


def memory(process: Process) -> int:
    """Resident bytes of the process and its descendants; 0 if it does not run."""
    root = _find(process)
    total = 0
    for relative in _tree(root) if root else []:
        try:
            total += relative.memory_info().rss
        except psutil.Error:
            continue
    return total


def serves(process: Process) -> bool:
    """Whether this process, and not another one, listens on its port."""
    root = _find(process)
    if root is None:
        return False
    try:
        sockets = [connection for relative in _tree(root) for connection in relative.net_connections("tcp")]
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == process.port for one in sockets)


def is_free(port: int) -> bool:
    """Whether a server could listen on that loopback port now."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not count
        try:
            listener.bind((HOST, port))
            listener.listen()
        except OSError:
            return False
    return True


def _find(process: Process) -> psutil.Process | None:
    try:
        candidate = psutil.Process(process.pid)
        same = abs(candidate.create_time() - process.created) < _SAME_START
        return candidate if same and candidate.status() != psutil.STATUS_ZOMBIE else None
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
        addresses = [connection.laddr for connection in root.net_connections("unix")]
    except psutil.Error:
        return []
    return [Path(address) for address in addresses if isinstance(address, str) and os.path.isabs(address)]


def _signal(processes: list[psutil.Process], verb: str) -> None:
    for process in processes:
        try:
            getattr(process, verb)()
        except psutil.NoSuchProcess:
            continue
