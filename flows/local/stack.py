"""The local stack: brings its servers up, takes them down, says how they are. PTP_HOME/stack.json is its record.

After `down` the record stays, with no processes: settings still point at the stack, so that a read says that it is
not up instead of quietly looking into another store.
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

from flows.local.orphaned_runs import end_lost_runs
from flows.local.process import Process, is_alive, is_free, memory, spawn, stop
from flows.local.servers import DEFAULT_PORTS, GRPC_OFFSET, LEANS_ON, NAMES, WEBHOOK_KEY, Member, Site, member
from ptpipeline.errors import StackError
from ptpipeline.records import Record
from ptpipeline.settings import STACK_FILE, STACK_SECRETS

_START_SECONDS = 180.0
_LOG_LINES = 15


class Ports(Record):
    """Ports asked for; None takes the one used before, or the default, or the next free one."""

    storage: int | None = None
    mlflow: int | None = None
    prefect: int | None = None


class Stack(Record):
    """The record of a stack: the PTP_* settings that point at it, and the processes that run it, by name."""

    settings: dict[str, str]
    processes: dict[str, Process]


class MemberStatus(Record):
    """How one server is. `memory` is resident bytes, its children's included."""

    name: str
    state: Literal["up", "not answering", "down"]
    address: str | None
    pid: int | None
    memory: int


class _Overtaken(StackError):
    """What was seen is no longer so: the port was taken by somebody else, or a running server ended just then."""


def up(home: Path, ports: Ports | None = None) -> Stack:
    """Start what does not run yet and return when all of it answers; what runs already is left alone.

    Raises StackError where a given port is busy, another `up` or `down` is at work in this folder, or a server dies
    while starting (with the last lines of its log); then nothing that this call started stays behind.
    """
    home = home.expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    with _alone_in(home):
        for _ in range(3):
            try:
                return _brought_up(home, ports or Ports())
            except _Overtaken as error:
                overtaken = error
        raise overtaken


def down(home: Path) -> None:
    """Stop every process of the stack, the worker first so that it can still report its runs; a repeat does nothing."""
    home = home.expanduser().resolve()
    stack = read(home)
    if stack is None:
        return
    with _alone_in(home):
        stack = read(home) or stack
        servers = dict(stack.processes)
        if worker := servers.pop("worker", None):
            stop(worker)
        with ThreadPoolExecutor(len(NAMES)) as pool:
            list(pool.map(stop, servers.values()))
        _write(home, stack.model_copy(update={"processes": {}}))


def status(home: Path) -> list[MemberStatus]:
    """One line per server, in starting order; all of them down where there never was a stack."""
    home = home.expanduser().resolve()
    stack = read(home)
    site = _site(home, stack) if stack else None
    return [_member_status(name, stack, site) for name in NAMES]


def read(home: Path) -> Stack | None:
    """The stack recorded in that folder, None where there is none; StackError where the record is not readable."""
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


def _brought_up(home: Path, asked: Ports) -> Stack:
    before = read(home)
    running = {name: process for name, process in (before.processes if before else {}).items() if is_alive(process)}
    site = Site(home, _chosen_ports(before, running, asked), _keys(home))
    for name, base in LEANS_ON.items():
        if name in running and base not in running and before and _recorded_ports(before)[base] != site.ports[base]:
            stop(running.pop(name))
    if set(running) == set(NAMES):
        return Stack(settings=site.settings(), processes=running)
    with ThreadPoolExecutor(len(NAMES)) as pool, ExitStack() as undo:
        undo.callback(_restore, home, before)
        waits: dict[str, Future[None]] = {}
        for name in NAMES:
            if name == "worker":
                waits["prefect"].result()  # a worker that finds no server gives up
                if name not in running:
                    end_lost_runs(home, site.settings()["prefect"])
            server = member(name, site)
            started = name not in running
            if started:
                running[name] = spawn(server.command, server.environment, _log(home, name), site.ports.get(name))
                undo.callback(stop, running[name])
                _write(home, Stack(settings=site.settings(), processes=running))
            waits[name] = pool.submit(_wait, server, running[name], home, started)
        for wait in waits.values():
            wait.result()
        undo.pop_all()
    return Stack(settings=site.settings(), processes=running)


def _wait(server: Member, process: Process, home: Path, started: bool) -> None:
    log = _log(home, server.name)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if not is_alive(process):
            lost = not started or (process.port is not None and not is_free(process.port))
            raise (_Overtaken if lost else StackError)(f"{server.name} died while starting; {log} ends: {_tail(log)}")
        if server.ready(process):
            return
        time.sleep(0.1)
    raise StackError(
        f"{server.name} (pid {process.pid}) does not answer after {_START_SECONDS:.0f} s; `ptp down`, then "
        f"`ptp up`; {log} ends: {_tail(log)}"
    )


def _chosen_ports(before: Stack | None, running: dict[str, Process], asked: Ports) -> dict[str, int]:
    recorded = _recorded_ports(before) if before else DEFAULT_PORTS
    chosen: dict[str, int] = {}
    for name in DEFAULT_PORTS:
        given = getattr(asked, name)
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
            chosen[name] = next(
                port for port in range(recorded[name], 55_000) if _is_usable(name, port) and port not in chosen.values()
            )
    return chosen


def _is_usable(name: str, port: int) -> bool:
    return is_free(port) and (name != "storage" or is_free(port + GRPC_OFFSET))


def _recorded_ports(stack: Stack) -> dict[str, int]:
    addresses = {"storage": "s3_endpoint", "mlflow": "mlflow", "prefect": "prefect"}
    return {name: urlparse(stack.settings[setting]).port or DEFAULT_PORTS[name] for name, setting in addresses.items()}


def _keys(home: Path) -> dict[str, str]:
    """The stack's own random keys, of the storage and of what MLflow encrypts; made once and readable by their owner
    only.
    """
    path = home / STACK_SECRETS
    lines = path.read_text().splitlines() if path.exists() else []
    kept = {name: value for name, _, value in (line.partition("=") for line in lines)}
    made = {
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        WEBHOOK_KEY: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }
    keys = made | kept
    if keys != kept:
        _replace(path, "".join(f"{name}={value}\n" for name, value in keys.items()))
    return {name: keys[name] for name in made}


# ---------------------------------------------------------------- the record


def _site(home: Path, stack: Stack) -> Site:
    return Site(home, _recorded_ports(stack), _keys(home))


def _member_status(name: str, stack: Stack | None, site: Site | None) -> MemberStatus:
    process = stack.processes.get(name) if stack else None
    address = site.address(name) if site and name in DEFAULT_PORTS else None
    if process is None or site is None or not is_alive(process):
        return MemberStatus(name=name, state="down", address=address, pid=None, memory=0)
    state: Literal["up", "not answering"] = "up" if member(name, site).ready(process) else "not answering"
    return MemberStatus(name=name, state=state, address=address, pid=process.pid, memory=memory(process))


@contextmanager
def _alone_in(home: Path) -> Iterator[None]:
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
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _log(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
    return " | ".join(line.strip() for line in lines if line.strip()) or "(empty)"
