"""The local stack: starts its servers, stops them, reports their state. PTP_HOME/stack.json is its record.

After `down` the record stays, without processes: the settings still point at the stack, so that a read fails and does
not silently look into another store.
"""

import base64
import json
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from filelock import FileLock, Timeout
from pydantic import ValidationError

from flows.local.orphaned_runs import end_orphaned_runs
from flows.local.process import Process, is_alive, is_free, memory, spawn, stop
from flows.local.servers import (
    DEFAULT_PORTS,
    DEPENDS_ON,
    GRPC_OFFSET,
    LAST_PORT,
    NAMES,
    WEBHOOK_KEY,
    Server,
    StackConfig,
    define_server,
)
from ptpipeline.durable import publish
from ptpipeline.errors import StackError
from ptpipeline.records.base import Record
from ptpipeline.settings import STACK_FILE, STACK_SECRETS

_START_SECONDS = 180.0
_LOG_LINES = 15


class Ports(Record):
    """Requested ports; None takes the port used before, else the default, else the next free one."""

    storage: int | None = None
    mlflow: int | None = None
    prefect: int | None = None


class Stack(Record):
    """The record of a stack: the PTP_* settings that point at it, and the processes that run it, by name."""

    settings: dict[str, str]
    processes: dict[str, Process]


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
    home = home.expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    with _lock(home):
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
    home = home.expanduser().resolve()
    stack = read(home)
    if stack is None:
        return
    with _lock(home):
        stack = read(home) or stack
        servers = dict(stack.processes)
        if worker := servers.pop("worker", None):
            stop(worker)
        with ThreadPoolExecutor(len(NAMES)) as pool:
            list(pool.map(stop, servers.values()))
        _write(home, stack.model_copy(update={"processes": {}}))


def status(home: Path) -> list[ServerStatus]:
    """Return the state of each server, in starting order; all are down if there is no stack."""
    home = home.expanduser().resolve()
    stack = read(home)
    config = StackConfig(home, _recorded_ports(stack), _load_keys(home)) if stack else None
    return [_server_status(name, stack, config) for name in NAMES]


def read(home: Path) -> Stack | None:
    """Return the stack recorded in that folder, None if there is none; raise StackError if the record is unreadable."""
    path = home / STACK_FILE
    try:
        return Stack.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        raise StackError(
            f"{path}: not a stack record ({str(error).splitlines()[0]}); remove it and run `ptp up`"
        ) from None


# ---------------------------------------------------------------- starting


def _start_missing(home: Path, requested: Ports) -> Stack:
    before = read(home)
    running = {name: process for name, process in (before.processes if before else {}).items() if is_alive(process)}
    config = StackConfig(home, _choose_ports(before, running, requested), _load_keys(home))
    if before:
        _stop_dependents(running, _recorded_ports(before), config.ports)
    if set(running) == set(NAMES):
        return Stack(settings=config.settings(), processes=running)
    with ThreadPoolExecutor(len(NAMES)) as pool, ExitStack() as undo:
        undo.callback(_restore, home, before)
        waits: dict[str, Future[None]] = {}
        for name in NAMES:
            if name == "worker":
                waits["prefect"].result()  # a worker that finds no server gives up
                if name not in running:
                    end_orphaned_runs(home, config.settings()["prefect"])
            server = define_server(name, config)
            started = name not in running
            if started:
                running[name] = spawn(server.command, server.environment, _log(home, name), config.ports.get(name))
                undo.callback(stop, running[name])
                _write(home, Stack(settings=config.settings(), processes=running))
            waits[name] = pool.submit(_wait, server, running[name], home, started)
        for wait in waits.values():
            wait.result()
        undo.pop_all()
    return Stack(settings=config.settings(), processes=running)


def _stop_dependents(running: dict[str, Process], before: dict[str, int], ports: dict[str, int]) -> None:
    """Stop the servers whose environment holds a port that moved, and take them out of `running`."""
    for name, base in DEPENDS_ON.items():
        if name in running and base not in running and before[base] != ports[base]:
            stop(running.pop(name))


def _wait(server: Server, process: Process, home: Path, started: bool) -> None:
    log = _log(home, server.name)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if not is_alive(process):
            overtaken = not started or (process.port is not None and not is_free(process.port))
            error = _Overtaken if overtaken else StackError
            raise error(f"{server.name} died while starting; {log} ends: {_tail(log)}")
        if server.ready(process):
            return
        time.sleep(0.1)
    raise StackError(
        f"{server.name} (pid {process.pid}) does not answer after {_START_SECONDS:.0f} s; run `ptp down`, "
        f"then `ptp up`; {log} ends: {_tail(log)}"
    )


def _choose_ports(before: Stack | None, running: dict[str, Process], requested: Ports) -> dict[str, int]:
    recorded = _recorded_ports(before) if before else DEFAULT_PORTS
    chosen: dict[str, int] = {}
    for name in DEFAULT_PORTS:
        given = getattr(requested, name)
        if name in running:
            chosen[name] = recorded[name]
            if given not in (None, recorded[name]):
                raise StackError(
                    f"{name} runs on port {recorded[name]} already, not on {given}: `ptp down` first, or leave "
                    "the port out"
                )
        elif given is not None:
            if not _is_usable(name, given):
                raise StackError(
                    f"port {given} for {name} is busy: free it, or leave the port out to take the next free one"
                )
            chosen[name] = given
        else:
            chosen[name] = _next_free_port(name, recorded[name], set(chosen.values()))
    return chosen


def _next_free_port(name: str, first: int, taken: set[int]) -> int:
    return next(port for port in range(first, LAST_PORT) if _is_usable(name, port) and port not in taken)


def _is_usable(name: str, port: int) -> bool:
    return is_free(port) and (name != "storage" or is_free(port + GRPC_OFFSET))


def _recorded_ports(stack: Stack) -> dict[str, int]:
    addresses = {"storage": "s3_endpoint", "mlflow": "mlflow", "prefect": "prefect"}
    return {name: urlparse(stack.settings[setting]).port or DEFAULT_PORTS[name] for name, setting in addresses.items()}


def _load_keys(home: Path) -> dict[str, str]:
    """Return the stack's random keys, for the storage and for what MLflow encrypts; missing ones are made.

    Only the owner can read their file.
    """
    path = home / STACK_SECRETS
    lines = path.read_text().splitlines() if path.exists() else []
    existing = {name: value for name, _, value in (line.partition("=") for line in lines)}
    new = {
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        WEBHOOK_KEY: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }
    keys = new | existing
    if keys != existing:
        _replace(path, "".join(f"{name}={value}\n" for name, value in keys.items()))
    return {name: keys[name] for name in new}


# ---------------------------------------------------------------- the record


def _server_status(name: str, stack: Stack | None, config: StackConfig | None) -> ServerStatus:
    process = stack.processes.get(name) if stack else None
    address = config.address(name) if config and name in DEFAULT_PORTS else None
    if process is None or config is None or not is_alive(process):
        return ServerStatus(name=name, state="down", address=address, pid=None, memory=0)
    ready = define_server(name, config).ready(process)
    state: Literal["up", "not answering"] = "up" if ready else "not answering"
    return ServerStatus(name=name, state=state, address=address, pid=process.pid, memory=memory(process))


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    try:
        with FileLock(home / "stack.lock", timeout=0):
            yield
    except Timeout:
        raise StackError(f"another `ptp up` or `ptp down` is at work in {home}: wait for it to end") from None


def _write(home: Path, stack: Stack) -> None:
    _replace(home / STACK_FILE, json.dumps(stack.to_json(), indent=1) + "\n")


def _restore(home: Path, before: Stack | None) -> None:
    if before is None:
        (home / STACK_FILE).unlink(missing_ok=True)
    else:
        _write(home, before)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    publish(temporary, path)


def _log(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
    return " | ".join(line.strip() for line in lines if line.strip()) or "(empty)"
