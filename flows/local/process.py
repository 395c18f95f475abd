"""Detached processes: each has its own session, is known by pid and start time, and is stopped with its children.

What they write is readable by their owner alone. Each carries a mark in its environment, so that one that was started
and not recorded, because its starter was killed in between, is found again.
"""

import os
import socket
import subprocess
import time
from pathlib import Path

import psutil

from ptpipeline.private import UMASK
from ptpipeline.records.base import Record

HOST = "127.0.0.1"
MARK = "PTP_STACK_SERVER"  # the variable that names the server to whoever looks for it
FLOW_RUN = "PREFECT__FLOW_RUN_ID"  # Prefect's variable in the environment of a flow run
_STOP_SECONDS = 20.0
_RUN_SECONDS = 15.0  # for a training's last step and its checkpoint
_REPORT_SECONDS = 3.0
_LOOK_SECONDS = 0.3  # between two looks at what a process that ends has started
_SAME_START = 2.0  # seconds: the start time is computed from the boot time, which clock corrections shift


class Process(Record):
    """A started process: its pid, its start time (seconds since the epoch, against reused pids), the port it serves."""

    pid: int
    created: float
    port: int | None = None


def spawn(
    command: list[str], environment: dict[str, str], log: Path, port: int | None = None, folder: Path | None = None
) -> Process:
    """Start `command` so that it outlives the caller and its terminal; append its output to `log`.

    It runs in `folder`, by default in the caller's.
    """
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        child = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            umask=UMASK,
        )
    return Process(pid=child.pid, created=psutil.Process(child.pid).create_time(), port=port)


def is_alive(process: Process) -> bool:
    """Whether it still runs; a foreign process with the same pid, a zombie, and one that an interrupted `stop` left
    suspended do not count.
    """
    root = _find(process)
    try:
        return root is not None and root.status() != psutil.STATUS_STOPPED
    except psutil.Error:  # it ended meanwhile
        return False


def find_marked(prefix: str) -> list[Process]:
    """Return the running processes of this user whose mark starts with `prefix`.

    Children inherit a mark: of a tree of marked processes only the root counts.
    """
    marked = {process.pid: process for process in psutil.process_iter() if _mark(process).startswith(prefix)}
    roots = [process for process in marked.values() if _parent(process) not in marked]
    found = []
    for process in roots:
        try:
            found.append(Process(pid=process.pid, created=process.create_time()))
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def read_mark(process: Process) -> str:
    """Return the mark of a running process; empty if it has none or is gone."""
    root = _find(process)
    return _mark(root) if root else ""


def read_environment(process: Process) -> dict[str, str]:
    """Return the environment that a running process was started with; empty if it is gone."""
    root = _find(process)
    try:
        return dict(root.environ()) if root else {}
    except psutil.Error:  # it ended meanwhile
        return {}


def stop(process: Process) -> None:
    """End the process and its descendants: SIGTERM, then SIGKILL for those that still run after 20 s.

    Flow runs below a worker are told first, and end before it is told: a training writes its checkpoint, and Prefect's
    worker kills its runs as soon as it is told. It is suspended meanwhile, or it would start a night that goes on again
    and again. A run that it starts all the same is told as soon as it is seen, and the worker gets some seconds to
    report its runs. A foreign process with the same pid is left alone.
    """
    root = _find(process)
    if root is None:
        return
    sockets, running = _socket_files(root), _tree(root)
    told = {relative for relative in running[1:] if _is_flow_run(relative)}
    is_worker = bool(told) and not _is_flow_run(root)
    if is_worker:
        _signal([root], "suspend")
    _signal(list(told), "terminate")
    if is_worker:
        _wait(list(told), _RUN_SECONDS)
    ends = time.monotonic() + (_REPORT_SECONDS if is_worker else _STOP_SECONDS)
    _signal([root], "terminate")
    _signal([root], "resume")
    while running and time.monotonic() < ends:
        running = list({relative for one in running for relative in _tree(one)})
        runs = {relative for relative in running if relative not in told and _is_flow_run(relative)}
        _signal(list(runs), "terminate")
        told |= runs
        running = _wait(running, _LOOK_SECONDS)
    _signal(running, "kill")
    _wait(running, _STOP_SECONDS)
    for path in sockets:
        path.unlink(missing_ok=True)


def find_flow_runs(home: Path) -> dict[str, Process]:
    """Return the running flow runs of the stack in that folder, by the run's id, even if their worker is gone.

    What a run started inherits its environment: of such a tree only the root is the run.
    """
    found, parents = {}, {}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get("PTP_HOME") == str(home) and (run := environment.get(FLOW_RUN)):
                parents[process.pid] = process.ppid()
                found[process.pid] = run, Process(pid=process.pid, created=process.create_time())
        except (psutil.Error, OSError):
            continue
    runs = {pid: run for pid, (run, _) in found.items()}
    return {run: process for pid, (run, process) in found.items() if runs.get(parents[pid]) != run}


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


def _mark(process: psutil.Process) -> str:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        environment: dict[str, str] = process.environ()
    except (psutil.Error, OSError):  # it ended meanwhile, or belongs to another user
        return ""
    return "" if FLOW_RUN in environment else environment.get(MARK, "")  # a flow run may outlive its worker


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return [root]


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until they have ended, at most so long; return those that still run.

    One that nobody reaps has ended: in a container without an init process, orphans stay like that forever.
    """
    ends, running = time.monotonic() + seconds, processes
    while running and (left := ends - time.monotonic()) > 0:
        _, alive = psutil.wait_procs(running, timeout=min(left, 0.1))
        running = [process for process in alive if not _is_zombie(process)]
    return running


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def _is_flow_run(process: psutil.Process) -> bool:
    try:
        return FLOW_RUN in process.environ()
    except (psutil.Error, OSError):
        return False


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
