"""Processes of the local stack: known by pid and start, ended with their descendants, and nobody else's touched."""

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows.local import process as module
from flows.local.process import (
    FLOW_RUN,
    MARK,
    Process,
    find_flow_runs,
    find_marked,
    is_alive,
    is_free,
    memory,
    read_environment,
    read_mark,
    serves,
    spawn,
    stop,
)
from tests.waiting import wait_for

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])\n" + SLEEP
LATE = (
    "import os, signal, subprocess, sys, time\n"
    "def end(*_):\n"
    "    ours = {**os.environ, 'PREFECT__FLOW_RUN_ID': 'late'}\n"
    "    child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], env=ours)\n"
    "    open(sys.argv[2], 'w').write(str(child.pid))\n"
    "    time.sleep(1.5)\n"
    "    sys.exit()\n"
    "signal.signal(signal.SIGTERM, end)\n"
) + SLEEP
BUSY = (
    "import os, signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: None)\n"
    "print('up', flush=True)\n"
    "while True:\n"
    "    ours = {**os.environ, 'PREFECT__FLOW_RUN_ID': 'one'}\n"
    "    subprocess.run([sys.executable, '-c', sys.argv[1]], env=ours)\n"
)
RUN = (
    "import signal, sys, time\n"
    "def end(*_):\n"
    "    time.sleep(0.5)\n"
    "    open(sys.argv[1], 'w').write('checkpoint')\n"
    "    sys.exit()\n"
    "signal.signal(signal.SIGTERM, end)\n"
) + SLEEP
KILLER = (
    "import os, signal, subprocess, sys, time\n"
    "ours = {**os.environ, 'PREFECT__FLOW_RUN_ID': 'one'}\n"
    "child = subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], env=ours)\n"
    "signal.signal(signal.SIGTERM, lambda *_: (child.kill(), open(sys.argv[2] + '.told', 'w'), sys.exit()))\n"
) + SLEEP
SERVER = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n" + SLEEP


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts Python code and waits until it is up; what is left of it at the end is killed."""
    made: list[Process] = []

    def start(code: str, *arguments: str, lines: int = 1) -> Process:
        log = tmp_path / f"{len(made)}.log"
        made.append(spawn([sys.executable, "-c", code, *arguments], dict(os.environ), log))
        deadline = time.monotonic() + 30
        while log.read_bytes().count(b"up") < lines and time.monotonic() < deadline:
            time.sleep(0.02)
        return made[-1]

    yield start
    for process in made:
        if is_alive(process):
            for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                one.kill()


def test_a_process_is_alive_until_it_ends(started: Callable[..., Process]) -> None:
    process = started(SLEEP)
    assert is_alive(process)
    assert memory(process) > 0
    psutil.Process(process.pid).kill()
    deadline = time.monotonic() + 10
    while is_alive(process) and time.monotonic() < deadline:  # it waits to be reaped, which does not count
        time.sleep(0.02)
    assert (is_alive(process), memory(process)) == (False, 0)


@pytest.mark.parametrize("seconds", [-100, -5, 5])
def test_another_process_under_a_reused_pid_is_neither_alive_nor_ended(
    started: Callable[..., Process], seconds: float
) -> None:
    process = started(SLEEP)
    before = process.model_copy(update={"created": process.created + seconds})
    assert not is_alive(before)
    stop(before)
    assert is_alive(process)


def test_a_process_is_ended_with_its_descendants(
    started: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.3)
    process = started(PARENT, SLEEP, lines=2)
    (child,) = psutil.Process(process.pid).children()
    stop(process)
    assert not is_alive(process)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_descendant_that_ignores_its_end_is_killed(
    started: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.3)
    process = started(PARENT, STUBBORN, lines=2)
    (child,) = psutil.Process(process.pid).children()
    stop(process)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_run_ends_behind_its_checkpoint_before_its_worker_is_told(
    started: Callable[..., Process], tmp_path: Path
) -> None:
    worker = started(KILLER, RUN, str(tmp_path / "checkpoint"), lines=2)  # Prefect's kills its runs as soon as it ends
    began = time.monotonic()
    stop(worker)
    assert (is_alive(worker), (tmp_path / "checkpoint").read_text()) == (False, "checkpoint")
    assert (tmp_path / "checkpoint.told").exists()  # it may report its runs
    assert time.monotonic() - began < module._RUN_SECONDS


def test_a_run_is_no_worker_though_it_started_processes_and_has_the_time_of_a_run(
    started: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REPORT_SECONDS", 0.1)
    monkeypatch.setenv(FLOW_RUN, "one")
    run = started("import subprocess\nsubprocess.Popen(['sleep', '60'])\n" + RUN, str(tmp_path / "checkpoint"))
    stop(run)
    assert (tmp_path / "checkpoint").read_text() == "checkpoint"


def test_a_worker_that_an_interrupted_stop_left_suspended_is_not_alive_and_ends(
    started: Callable[..., Process],
) -> None:
    worker = started(SLEEP)
    psutil.Process(worker.pid).suspend()
    wait_for(lambda: not is_alive(worker), 10)
    stop(worker)
    assert not psutil.pid_exists(worker.pid) or psutil.Process(worker.pid).status() == psutil.STATUS_ZOMBIE


def test_a_run_that_a_process_starts_while_it_ends_is_told_too(started: Callable[..., Process], tmp_path: Path) -> None:
    process = started(LATE, SLEEP, str(tmp_path / "pid"))
    began = time.monotonic()
    stop(process)
    child = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert time.monotonic() - began < module._STOP_SECONDS


def test_a_worker_that_takes_runs_again_and_again_is_ended_behind_its_first_ones(
    started: Callable[..., Process],
) -> None:
    process = started(BUSY, SLEEP, lines=2)
    began = time.monotonic()
    stop(process)
    assert not is_alive(process)
    assert time.monotonic() - began < module._STOP_SECONDS / 2


def test_memory_is_that_of_the_descendants_too(started: Callable[..., Process]) -> None:
    process = started(PARENT, SLEEP, lines=2)
    assert memory(process) > 1.5 * psutil.Process(process.pid).memory_info().rss


def test_a_socket_file_goes_with_who_made_it(started: Callable[..., Process], tmp_path: Path) -> None:
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); unnamed = socket.socketpair()\n"
    server = started(code + SLEEP, str(tmp_path / "s"))
    assert (tmp_path / "s").is_socket()
    stop(server)
    assert not (tmp_path / "s").exists()


def test_flow_runs_are_those_of_the_stack_in_that_folder(tmp_path: Path) -> None:
    ours = {"PATH": os.environ["PATH"], "PTP_HOME": str(tmp_path)}
    environments = {
        "run": ours | {FLOW_RUN: "one"},
        "server": ours,
        "other": ours | {FLOW_RUN: "two", "PTP_HOME": f"{tmp_path}-2"},
    }
    made = {name: spawn(["sleep", "60"], own, tmp_path / "log") for name, own in environments.items()}
    try:
        assert {run: process.pid for run, process in find_flow_runs(tmp_path).items()} == {"one": made["run"].pid}
        assert read_environment(made["other"])[FLOW_RUN] == "two"
    finally:
        for process in made.values():
            psutil.Process(process.pid).kill()


def test_of_a_run_that_started_processes_its_own_is_found(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PTP_HOME": str(tmp_path), FLOW_RUN: "one"}
    run = spawn(["sh", "-c", "sleep 60 & wait"], environment, tmp_path / "log")
    try:
        wait_for(lambda: psutil.Process(run.pid).children(), 30)
        assert find_flow_runs(tmp_path) == {"one": run.model_copy(update={"port": None})}
    finally:
        stop(run)


def test_only_who_listens_on_its_own_port_serves(started: Callable[..., Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        taken = ours.getsockname()[1]
        free = _free_port()
        server = started(SERVER, str(free))
        assert serves(server.model_copy(update={"port": free}))
        assert not serves(server.model_copy(update={"port": taken}))
        assert (is_free(taken), is_free(free)) == (False, False)


def test_a_port_is_free_though_a_connection_of_its_last_server_is_still_ending() -> None:
    """Else `ptp up` behind `ptp down` would take other ports."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()
    assert is_free(port)


def test_who_ended_serves_nothing(started: Callable[..., Process]) -> None:
    free = _free_port()
    server = started(SERVER, str(free)).model_copy(update={"port": free})
    stop(server)
    assert (serves(server), is_free(free)) == (False, True)


def test_a_process_outlives_the_terminal_of_its_caller(started: Callable[..., Process]) -> None:
    process = started(SLEEP)
    assert os.getsid(process.pid) == process.pid


def test_what_a_process_writes_is_its_owners_alone(tmp_path: Path) -> None:
    log, own = tmp_path / "logs" / "log", tmp_path / "own"
    process = spawn(["sh", "-c", f"echo up; touch {own}"], {"PATH": os.environ["PATH"]}, log)
    deadline = time.monotonic() + 30
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (log.parent, log, own)]
    assert modes == [0o700, 0o600, 0o600]


def test_of_marked_processes_the_root_is_found_and_no_flow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.3)
    environment = {"PATH": os.environ["PATH"], MARK: f"{tmp_path}//storage/1"}
    root = spawn(["sh", "-c", "sleep 60 & wait"], environment, tmp_path / "log")
    run = spawn(["sleep", "60"], environment | {FLOW_RUN: "run"}, tmp_path / "log")  # it may outlive its worker
    other = spawn(["sleep", "60"], environment | {MARK: f"{tmp_path}-2//storage/1"}, tmp_path / "log")
    try:
        deadline = time.monotonic() + 30
        while not psutil.Process(root.pid).children() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [process.pid for process in find_marked(f"{tmp_path}//")] == [root.pid]
        assert (read_mark(root), read_mark(run)) == (environment[MARK], "")
    finally:
        for process in (root, run, other):
            stop(process)


def test_a_process_runs_in_its_folder_and_its_log_keeps_what_was_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("why the one before it ended\n")
    process = spawn(["pwd"], {"PATH": os.environ["PATH"]}, log, folder=tmp_path)
    wait_for(lambda: not is_alive(process), 30, 0.02)
    assert log.read_text() == f"why the one before it ended\n{tmp_path}\n"


def test_what_never_ran_is_not_alive() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    created = psutil.Process(ended.pid).create_time()
    ended.wait()
    assert not is_alive(Process(pid=ended.pid, created=created))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
