"""What `ptp up` keeps, stops, chooses and says, with plain processes in the place of the servers."""

import os
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from benchmarks.fixtures.s3_server import free_ports
from flows.local import stack
from flows.local.certificate import locate
from flows.local.ports import Ports
from flows.local.process import (
    FLOW_RUN,
    MARK,
    Process,
    find_flow_runs,
    find_marked,
    is_alive,
    is_free,
    read_mark,
    spawn,
    stop,
)
from flows.local.servers import NAMES, Server, StackConfig, mark_prefix, worker_settings
from flows.local.stack import Stack, _changed_settings, down, read, status
from ptpipeline.errors import StackError
from tests.processes import in_child
from tests.waiting import wait_for

Sleeping = Callable[..., Process]


@pytest.fixture
def sleeping(tmp_path: Path) -> Iterator[Sleeping]:
    """Starts a process with a mark, and what else its environment is to hold; it is ended with the test."""
    with ExitStack() as ends:

        def start(mark: str, **environment: str) -> Process:
            process = spawn(["sleep", "60"], {"PATH": os.environ["PATH"], MARK: mark, **environment}, tmp_path / "log")
            ends.callback(stop, process)
            while not read_mark(process):  # Linux shows the environment a moment after the program
                time.sleep(0.01)
            return process

        yield start


@contextmanager
def at_work(home: Path) -> Iterator[Process]:
    """A flow run of the stack, whose worker is gone."""
    run = spawn(["sleep", "60"], {"PATH": os.environ["PATH"], "PTP_HOME": str(home), FLOW_RUN: "one"}, home / "log")
    try:
        wait_for(lambda: find_flow_runs(home), 30, 0.01)
        yield run
    finally:
        stop(run)


# ---------------------------------------------------------------- settings


def test_a_changed_target_of_events_is_named_and_its_address_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "PTP_HOME": str(tmp_path), "PTP_EVENT_CHAT": "slack:https://example.com/hidden"}
    process = spawn(["sleep", "60"], environment, tmp_path / "log")
    try:
        monkeypatch.setenv("PTP_EVENT_CHAT", "slack:https://example.com/concealed")
        changes = _changed_settings(tmp_path, process)
    finally:
        stop(process)
    assert "PTP_EVENT_CHAT is another" in changes
    assert "example.com" not in changes


def test_a_worker_with_todays_settings_has_none_that_changed(
    tmp_path: Path, sleeping: Sleeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTP_DTYPE", "float32")
    worker = sleeping("a mark", **worker_settings(tmp_path))
    assert _changed_settings(tmp_path, worker) == ""
    monkeypatch.delenv("PTP_DTYPE")
    assert _changed_settings(tmp_path, worker) == "PTP_DTYPE float32 -> unset"


# ---------------------------------------------------------------- what runs already


def test_only_recorded_servers_of_todays_make_are_kept(
    tmp_path: Path, sleeping: Sleeping, caplog: pytest.LogCaptureFixture
) -> None:
    config = StackConfig(tmp_path, {}, {})
    current, older = sleeping(config.mark("storage")), sleeping(f"{mark_prefix(tmp_path)}prefect/0")
    unrecorded, other = sleeping(config.mark("mlflow")), sleeping(f"{mark_prefix(tmp_path / 'other')}mlflow/6")
    ended = current.model_copy(update={"created": current.created - 100})
    kept = stack._keep_current(tmp_path, {"storage": current, "prefect": older, "worker": ended})
    assert kept == {"storage": current}
    assert [is_alive(process) for process in (current, older, unrecorded, other)] == [True, False, False, True]
    assert [record.args for record in caplog.records] == [("prefect",)]  # the worker did not run


def test_a_worker_with_other_settings_is_started_anew_unless_a_run_is_at_work(
    tmp_path: Path, sleeping: Sleeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PTP_DTYPE", raising=False)
    stack._write(tmp_path, Stack(settings={"prefect": f"http://127.0.0.1:{free_ports(1)[0]}/api"}, processes={}))
    mark = StackConfig(tmp_path, {}, {}).mark("worker")
    worker = sleeping(mark, **worker_settings(tmp_path), PTP_DTYPE="float32")
    told = r"PTP_DTYPE float32 -> unset\), and flow run one is at work: `ptp up` again when it has ended"
    with at_work(tmp_path), pytest.raises(StackError, match=told):
        stack._keep_current(tmp_path, {"worker": worker})
    assert is_alive(worker)
    assert stack._keep_current(tmp_path, {"worker": worker}) == {}
    assert not is_alive(worker)


@pytest.mark.parametrize(("port", "stays"), [(8333, True), (8334, False)])
def test_who_was_told_a_port_that_moved_is_started_anew(sleeping: Sleeping, port: int, stays: bool) -> None:
    running = {"mlflow": sleeping("m")}
    before = {"storage": 8333, "prefect": 4200, "mlflow": 5000}
    stack._stop_dependents(running, before, before | {"storage": port})
    assert ("mlflow" in running) == stays


# ---------------------------------------------------------------- starting


def test_a_start_that_fails_is_tried_once_and_leaves_nothing_that_runs_and_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def define(name: str, config: StackConfig) -> Server:
        command = ["sleep", "60"] if name == "storage" else ["sh", "-c", f"echo {name} >> {tmp_path}/tried; exit 1"]
        environment = {"PATH": os.environ["PATH"], MARK: config.mark(name)}
        return Server(name, command, environment, lambda _: name == "storage")

    monkeypatch.setattr(stack, "define_server", define)
    storage, mlflow, prefect = free_ports(3)
    with pytest.raises(StackError, match="prefect died while starting"):
        stack.up(tmp_path, Ports(storage=storage, mlflow=mlflow, prefect=prefect))
    assert (find_marked(mark_prefix(tmp_path)), read(tmp_path)) == ([], None)
    assert sorted((tmp_path / "tried").read_text().split()) == ["mlflow", "prefect"]  # no worker without a server


PREFECT = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Answering(BaseHTTPRequestHandler):
    def do_POST(self):
        with open(sys.argv[2], "a") as file:
            file.write(f"{self.path}\\n")
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

HTTPServer(("127.0.0.1", int(sys.argv[1])), Answering).serve_forever()
"""  # knows of no run, and notes what it is asked


def test_what_was_started_is_recorded_and_runs_on_and_only_what_ended_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orphaned runs are looked for only while there is no worker, whose own they could be."""
    asked = tmp_path / "asked"

    def define(name: str, config: StackConfig) -> Server:
        environment = {"PATH": os.environ["PATH"], MARK: config.mark(name), **worker_settings(tmp_path)}
        if name != "prefect":
            return Server(name, ["sleep", "60"], environment, lambda _: True)
        command = [sys.executable, "-S", "-c", PREFECT, str(config.ports["prefect"]), str(asked)]
        return Server(name, command, environment, lambda process: process.port is None or not is_free(process.port))

    monkeypatch.setattr(stack, "define_server", define)
    storage, mlflow, prefect = free_ports(3)
    try:
        first = stack.up(tmp_path, Ports(storage=storage, mlflow=mlflow, prefect=prefect))
        assert (set(first.processes), read(tmp_path)) == (set(NAMES), first)
        assert locate(tmp_path).key.is_file()
        looks = asked.read_text()
        for ended, more in (("mlflow", ""), ("worker", looks)):
            before = asked.read_text()
            stop(first.processes[ended])
            again = stack.up(tmp_path)
            assert {name for name in NAMES if again.processes[name] != first.processes[name]} == {ended}
            assert (asked.read_text(), read(tmp_path)) == (before + more, again)
            first = again
        assert stack.up(tmp_path) == first
        assert all(map(is_alive, first.processes.values()))
    finally:
        down(tmp_path)


@pytest.mark.parametrize(
    ("started", "taken", "again"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_a_server_that_dies_is_started_again_only_if_somebody_came_between(
    tmp_path: Path, started: bool, taken: bool, again: bool
) -> None:
    log = tmp_path / "logs" / "mlflow.log"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if taken else free_ports(1)[0]
        process = spawn(["sh", "-c", "echo it broke"], {"PATH": os.environ["PATH"]}, log, port)
        server = Server("mlflow", [], {}, lambda _: False)
        with pytest.raises(StackError, match=r"mlflow died while starting; .* ends: it broke") as died:
            stack._wait(server, process, tmp_path, started)
    assert isinstance(died.value, stack._Overtaken) == again


def test_one_call_at_a_time_is_at_work_in_a_folder(tmp_path: Path) -> None:
    with stack._lock(tmp_path), pytest.raises(StackError, match="another `ptp up` or `ptp down` is at work"):
        stack._lock(tmp_path).__enter__()
    with stack._lock(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_no_stack_is_started_in_another_users_folder() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 65533, 65533)
        Path(folder).chmod(0o777)  # as somebody prepares it, with keys that they know

        def as_nobody() -> None:
            os.setuid(65534)
            with pytest.raises(StackError, match="belongs to another user: set PTP_HOME to a folder of your own"):
                stack._lock(Path(folder)).__enter__()

        in_child(as_nobody)
        assert list(Path(folder).iterdir()) == []


def test_an_error_shows_the_end_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"{number}\n" for number in range(100)))
    assert stack._tail(tmp_path / "log") == " | ".join(map(str, range(85, 100)))


# ---------------------------------------------------------------- stopping


def test_down_ends_what_is_recorded_and_what_is_not_and_keeps_the_record(tmp_path: Path, sleeping: Sleeping) -> None:
    mark = StackConfig(tmp_path, {}, {}).mark
    servers = [sleeping(mark("storage")), sleeping(mark("mlflow"))]
    stack._write(tmp_path, Stack(settings={"store": "s3://ptp"}, processes={"storage": servers[0]}))
    with at_work(tmp_path) as run:
        down(tmp_path)
        assert [is_alive(process) for process in (*servers, run)] == [False] * 3
    assert read(tmp_path) == Stack(settings={"store": "s3://ptp"}, processes={})
    (tmp_path / "stack.json").unlink()
    killed_before_its_record = sleeping(mark("prefect"))
    down(tmp_path)
    assert not is_alive(killed_before_its_record)


def test_a_run_that_outlives_its_worker_ends_with_it(tmp_path: Path, sleeping: Sleeping) -> None:
    with at_work(tmp_path) as run:
        stack._stop_servers(tmp_path, {"worker": sleeping("worker")})
        assert not is_alive(run)


# ---------------------------------------------------------------- the record


def test_a_server_that_does_not_answer_is_not_up_and_one_that_ended_is_down(tmp_path: Path, sleeping: Sleeping) -> None:
    (port,) = free_ports(1)
    silent = sleeping("prefect").model_copy(update={"port": port})
    ended = silent.model_copy(update={"created": silent.created - 100})
    settings = StackConfig(tmp_path, {"storage": 1, "mlflow": 2, "prefect": port}, {}).settings()
    stack._write(tmp_path, Stack(settings=settings, processes={"prefect": silent, "mlflow": ended}))
    found = {server.name: (server.state, server.address, server.pid) for server in status(tmp_path)}
    assert found["prefect"] == ("not answering", f"http://127.0.0.1:{port}", silent.pid)
    assert found["mlflow"] == ("down", "http://127.0.0.1:2", None)
    assert found["worker"] == ("down", None, None)


@pytest.mark.parametrize(("original", "ended"), [("stays", False), ("is moved here", True)])
def test_a_copied_folder_has_no_part_in_the_originals_servers_and_a_moved_one_has(
    tmp_path: Path, sleeping: Sleeping, original: str, ended: bool
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    storage = sleeping(StackConfig(first, {}, {}).mark("storage"))
    settings = StackConfig(first, {"storage": 1, "mlflow": 2, "prefect": 3}, {}).settings()
    for home in (first, second) if original == "stays" else (second,):
        home.mkdir()
        stack._write(home, Stack(settings=settings, processes={"storage": storage}, home=str(first)))
    found = next(server for server in status(second) if server.name == "storage")
    assert (found.pid is None) is not ended
    down(second)
    assert is_alive(storage) is not ended


def test_the_record_is_private_and_goes_with_what_made_it(tmp_path: Path) -> None:
    before, after = (Stack(settings={"store": store}, processes={}) for store in ("s3://one", "s3://two"))
    path = tmp_path / "stack.json"
    stack._write(tmp_path, before)
    assert (read(tmp_path), stat.S_IMODE(path.stat().st_mode)) == (before, 0o600)
    stack._restore(tmp_path, after)
    assert read(tmp_path) == after
    stack._restore(tmp_path, None)
    assert read(tmp_path) is None


def test_a_record_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    path.write_text("{}")
    with pytest.raises(StackError, match=r"not a stack record .* remove it and run `ptp up`"):
        read(tmp_path)
    path.write_bytes(b"\xff")
    with pytest.raises(StackError, match=r"not a stack record .* remove it and run `ptp up`"):
        read(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StackError, match=r"cannot be read .* set PTP_HOME to a folder of your own"):
        read(tmp_path)


@pytest.mark.parametrize("prefect", [{}, {"prefect": "http://127.0.0.1:42x0/api"}])
def test_a_record_without_the_address_of_a_server_is_told(tmp_path: Path, prefect: dict[str, str]) -> None:
    settings = {"s3_endpoint": "http://127.0.0.1:8333", "mlflow": "http://127.0.0.1:5000", **prefect}
    stack._write(tmp_path, Stack(settings=settings, processes={}))
    with pytest.raises(StackError, match=r"lacks the address of a server .* remove it and run `ptp up`"):
        status(tmp_path)


def test_without_a_stack_there_is_nothing_to_stop_and_nothing_is_made(tmp_path: Path) -> None:
    down(tmp_path / "home")
    assert not (tmp_path / "home").exists()
