"""The local stack: starts its servers, stops them, reports their state. PTP_HOME/stack.json is its record.

After `down` the record stays, without processes: the settings still point at the stack, so that a read fails and does
not silently look into another store.
"""

import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from filelock import FileLock, Timeout
from pydantic import ValidationError

from flows.local import certificate
from flows.local.keys import load_keys, renew_keys
from flows.local.orphaned_runs import end_orphaned_runs, runs_at_work
from flows.local.ports import Ports, choose_ports
from flows.local.process import (
    MARK,
    Process,
    find_flow_runs,
    find_marked,
    is_alive,
    is_free,
    memory,
    read_environment,
    read_mark,
    spawn,
    stop,
)
from flows.local.servers import (
    DEFAULT_PORTS,
    DEPENDS_ON,
    NAMES,
    WITH_SETTINGS,
    Server,
    StackConfig,
    define_server,
    mark_prefix,
    worker_settings,
)
from flows.server.environment import EVENT
from ptpipeline.errors import StackError
from ptpipeline.private import is_own, make_private, open_own, private_files, write_private
from ptpipeline.records.base import Record
from ptpipeline.settings import STACK_FILE, resolve_path
from registry.failpoints import reached

_START_SECONDS = 180.0
_LOG_LINES = 15

log = logging.getLogger("ptpipeline.stack")


class Stack(Record):
    """The record of a stack: the PTP_* settings that point at it, and the processes that run it, by name.

    `home` is the folder that it is of; None if an older ptpipeline wrote it.
    """

    settings: dict[str, str]
    processes: dict[str, Process]
    home: str | None = None

    def is_of(self, home: Path) -> bool:
        """Whether it is that folder's own, and was not copied or moved there with its folder."""
        return self.home in (None, str(home))


class ServerStatus(Record):
    """The state of one server. `memory` is in resident bytes and includes its children."""

    name: str
    state: Literal["up", "not answering", "down"]
    address: str | None
    pid: int | None
    memory: int


class _Overtaken(StackError):
    """The state changed meanwhile: another program took the port, or a running server ended. Worth another try."""


def up(home: Path, ports: Ports | None = None) -> Stack:
    """Start the servers that do not run yet, and return when all of them answer.

    Raises StackError if a given port is busy, another `up` or `down` is at work in this folder, or a server dies
    while starting (with the last lines of its log); then everything that this call started is stopped again.
    """
    home = resolve_path(home)
    with private_files(), _lock(home):
        for _ in range(3):
            try:
                return _start_missing(home, ports or Ports())
            except _Overtaken as error:
                overtaken = error
        raise overtaken


def down(home: Path) -> None:
    """Stop every process of the stack, the worker first so that it can still report its runs.

    Does nothing if there is no stack, or it is down already.
    """
    home = resolve_path(home)
    if read(home) is None and not find_marked(mark_prefix(home)):
        return
    with private_files(), _lock(home):
        stack = read(home)
        _stop_servers(home, _list_processes(home, stack))
        _stop_all([*find_marked(mark_prefix(home)), *find_flow_runs(home).values()])
        if stack:
            _write(home, stack.model_copy(update={"processes": {}}))


def status(home: Path) -> list[ServerStatus]:
    """Return the state of each server, in starting order; all are down if there is no stack."""
    home = resolve_path(home)
    stack = read(home)
    config = StackConfig(home, _recorded_ports(stack), load_keys(home)) if stack else None
    processes = _list_processes(home, stack)
    return [_server_status(name, processes.get(name), config) for name in NAMES]


def read(home: Path) -> Stack | None:
    """Return the stack recorded in that folder, None if there is none; raise StackError if the record is unreadable."""
    path = home / STACK_FILE
    try:
        with open_own(path) as file:
            return Stack.model_validate_json(file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StackError(f"{path}: cannot be read ({error.strerror}); set PTP_HOME to a folder of your own") from None
    except ValidationError as error:
        raise StackError(
            f"{path}: not a stack record ({str(error).splitlines()[0]}); remove it and run `ptp up`"
        ) from None


# ---------------------------------------------------------------- starting


def _start_missing(home: Path, requested: Ports) -> Stack:
    before = read(home)
    running = _keep_current(home, _list_processes(home, before))
    if before and not before.is_of(home):
        renew_keys(home)  # else the servers of either folder would take requests that are meant for the other's
    config = StackConfig(home, choose_ports(requested, _recorded_ports(before), running), load_keys(home))
    certificate.ensure(home)
    if before:
        _stop_dependents(running, _recorded_ports(before), config.ports)
    if set(running) == set(NAMES):
        return Stack(settings=config.settings(), processes=running, home=str(home))
    with ThreadPoolExecutor(len(NAMES)) as pool, ExitStack() as undo:
        undo.callback(_restore, home, before)
        waits: dict[str, Future[None]] = {}
        for name in NAMES:
            if name == "worker":
                waits["prefect"].result()  # a worker that finds no server gives up
                if name not in running:
                    end_orphaned_runs(home, config.settings()["prefect"], config.credential("prefect"))
            server = define_server(name, config)
            started = name not in running
            if started:
                port = config.ports.get(name)
                running[name] = spawn(server.command, server.environment, _log_of(home, name), port, server.folder)
                undo.callback(stop, running[name])
                reached(f"started {name}")  # whoever is killed here leaves a process that no record names
                _write(home, Stack(settings=config.settings(), processes=running, home=str(home)))
            waits[name] = pool.submit(_wait, server, running[name], home, started)
        for wait in waits.values():
            wait.result()
        undo.pop_all()
    return Stack(settings=config.settings(), processes=running, home=str(home))


def _keep_current(home: Path, recorded: dict[str, Process]) -> dict[str, Process]:
    """Return the recorded servers that run as they are defined today; stop all other processes of this stack.

    Those are servers that an older ptpipeline started, and ones that an `up` started and did not record, because it was
    killed in between.
    """
    config = StackConfig(home, {}, {})
    alive = {name: process for name, process in recorded.items() if is_alive(process)}
    current = {name: process for name, process in alive.items() if read_mark(process) == config.mark(name)}
    for name in sorted(set(alive) - set(current)):
        log.warning("%s runs as an older ptpipeline started it: it is stopped and started again", name)
    for name in [name for name in WITH_SETTINGS if name in current]:
        if not (changes := _changed_settings(home, current[name])):
            continue
        if runs := _find_runs(home):
            raise StackError(
                f"the {name} runs with other settings ({changes}), and flow run {', '.join(runs)} is at work: `ptp up` "
                "again when it has ended, or `ptp down` first"
            )
        log.warning("the %s is started again with other settings: %s", name, changes)
        del current[name]
    _stop_servers(home, {name: process for name, process in alive.items() if name not in current})
    kept = {process.pid for process in current.values()}
    _stop_all([process for process in find_marked(mark_prefix(home)) if process.pid not in kept])
    return current


def _find_runs(home: Path) -> list[str]:
    """Return the names of the runs that are at work, and that the end of the worker would end too."""
    stack = read(home)
    if stack is None:
        return []
    return runs_at_work(home, stack.settings["prefect"], StackConfig(home, {}, load_keys(home)).credential("prefect"))


def _changed_settings(home: Path, process: Process) -> str:
    """Return the settings that a running process has otherwise than one started now would; empty if that is none."""
    wanted = worker_settings(home)
    given = {name: value for name, value in read_environment(process).items() if name.startswith("PTP_")}
    given.pop(MARK, None)
    changed = [name for name in sorted(given | wanted) if given.get(name) != wanted.get(name)]
    return ", ".join(
        f"{name} is another"  # an address may be a secret
        if name.startswith(EVENT)
        else f"{name} {given.get(name, 'unset')} -> {wanted.get(name, 'unset')}"
        for name in changed
    )


def _stop_servers(home: Path, servers: dict[str, Process]) -> None:
    """Stop the worker first, so that it can still report its runs, then the others.

    A run that it started just before it ended, and did not live to see end, is stopped with it.
    """
    if worker := servers.pop("worker", None):
        stop(worker)
        _stop_all(list(find_flow_runs(home).values()))
    _stop_all(list(servers.values()))


def _stop_all(processes: list[Process]) -> None:
    with ThreadPoolExecutor(len(NAMES)) as pool:
        list(pool.map(stop, processes))


def _stop_dependents(running: dict[str, Process], before: dict[str, int], ports: dict[str, int]) -> None:
    """Stop the servers whose environment holds a port that moved, and take them out of `running`."""
    for name, base in DEPENDS_ON.items():
        if name in running and before[base] != ports[base]:
            stop(running.pop(name))


def _wait(server: Server, process: Process, home: Path, started: bool) -> None:
    written = _log_of(home, server.name)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if not is_alive(process):
            overtaken = not started or (process.port is not None and not is_free(process.port))
            error = _Overtaken if overtaken else StackError
            raise error(f"{server.name} died while starting; {written} ends: {_tail(written)}")
        if server.ready(process):
            return
        time.sleep(0.1)
    raise StackError(
        f"{server.name} (pid {process.pid}) does not answer after {_START_SECONDS:.0f} s; run `ptp down`, "
        f"then `ptp up`; {written} ends: {_tail(written)}"
    )


def _recorded_ports(stack: Stack | None) -> dict[str, int]:
    """Return the ports of the stack's addresses; the default ones if there is no stack yet."""
    if stack is None:
        return DEFAULT_PORTS
    addresses = {"storage": "s3_endpoint", "mlflow": "mlflow", "prefect": "prefect"}
    try:
        return {name: urlparse(stack.settings[at]).port or DEFAULT_PORTS[name] for name, at in addresses.items()}
    except (KeyError, ValueError) as error:
        raise StackError(
            f"{STACK_FILE} of PTP_HOME lacks the address of a server ({error}); remove it and run `ptp up`"
        ) from None


# ---------------------------------------------------------------- the record


def _list_processes(home: Path, stack: Stack | None) -> dict[str, Process]:
    """Return the recorded processes; none if the folder is a copy of another, whose processes they are."""
    if stack is None or (not stack.is_of(home) and (Path(str(stack.home)) / STACK_FILE).exists()):
        return {}
    return dict(stack.processes)


def _server_status(name: str, process: Process | None, config: StackConfig | None) -> ServerStatus:
    address = config.address(name) if config and name in DEFAULT_PORTS else None
    if process is None or config is None or not is_alive(process):
        return ServerStatus(name=name, state="down", address=address, pid=None, memory=0)
    ready = define_server(name, config).ready(process)
    state: Literal["up", "not answering"] = "up" if ready else "not answering"
    return ServerStatus(name=name, state=state, address=address, pid=process.pid, memory=memory(process))


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Make the folder, for its owner alone, and keep other calls of `up` and `down` out of it.

    Raises StackError if another user owns it: whoever put keys there could run code as this user, through Prefect.
    """
    make_private(home)
    if not is_own(home.stat()):
        raise StackError(f"PTP_HOME={home} belongs to another user: set PTP_HOME to a folder of your own")
    try:
        with FileLock(home / "stack.lock", timeout=0):
            yield
    except Timeout:
        raise StackError(f"another `ptp up` or `ptp down` is at work in {home}: wait for it to end") from None


def _write(home: Path, stack: Stack) -> None:
    write_private(home / STACK_FILE, f"{json.dumps(stack.to_json(), indent=1)}\n".encode())


def _restore(home: Path, before: Stack | None) -> None:
    if before is None:
        (home / STACK_FILE).unlink(missing_ok=True)
    else:
        _write(home, before)


def _log_of(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
    return " | ".join(line.strip() for line in lines if line.strip()) or "(empty)"
