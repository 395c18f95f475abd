"""The client side of Prefect against a small server that answers as Prefect's API does."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fixtures.prompts import a_task
from flows.local.orphaned_runs import end_orphaned_runs, runs_at_work
from flows.local.process import spawn, stop
from flows.requests import IngestRequest
from flows.server import api
from flows.server import trigger as following
from flows.server.api import call
from flows.server.deploy import FLOWS, describe_deployment
from flows.server.trigger import Finished, follow, trigger
from ptpipeline.errors import NotFound, ServiceUnavailable, SettingsError

Answer = tuple[int, Any]


class Prefect:
    """Answers by method and path, and remembers what it was asked."""

    def __init__(self, routes: dict[str, Callable[[Any], Answer]]) -> None:
        self.routes = routes
        self.asked: list[tuple[str, Any]] = []
        self.url = ""

    def answer(self, what: str, body: Any) -> Answer:
        self.asked.append((what, body))
        return self.routes[what](body) if what in self.routes else (404, {"detail": "Not Found"})

    def bodies(self, what: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == what]


@contextmanager
def listening(prefect: Prefect) -> Iterator[Prefect]:
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, found = prefect.answer(f"{self.command} {self.path.removeprefix('/api')}", body)
            sent = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(found, bytes) else "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    prefect.url = f"http://127.0.0.1:{server.server_port}/api"
    try:
        yield prefect
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.01)


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, NotFound),
        (400, SettingsError),
        (401, SettingsError),
        (403, SettingsError),
        (422, SettingsError),
        (500, ServiceUnavailable),
        (502, ServiceUnavailable),
    ],
)
def test_a_refusal_is_told_by_its_kind(status: int, error: type[Exception]) -> None:
    with listening(Prefect({"GET /health": lambda body: (status, {"detail": "why"})})) as prefect:
        with pytest.raises(error) as raised:
            call("GET", f"{prefect.url}/health")
        assert type(raised.value) is error
        assert len(prefect.asked) == 1


def test_an_answer_that_is_no_json_names_the_setting() -> None:
    page = Prefect({"GET /health": lambda body: (200, b"<html>")})
    with listening(page) as prefect, pytest.raises(SettingsError, match="PTP_PREFECT"):
        call("GET", f"{prefect.url}/health")


def test_an_empty_answer_is_none() -> None:
    with listening(Prefect({"DELETE /one": lambda body: (200, b"")})) as prefect:
        assert call("DELETE", f"{prefect.url}/one") is None


# ---------------------------------------------------------------- runs


def test_a_run_is_started_once_per_key() -> None:
    routes = {
        "GET /deployments/name/ingest/ptp-ingest": lambda body: (200, {"id": "d"}),
        "POST /deployments/d/create_flow_run": lambda body: (201, {"id": "r"}),
    }
    with listening(Prefect(routes)) as prefect:
        request = IngestRequest(tasks=["mood"])
        assert trigger(prefect.url, "ingest", request, "key") == trigger(prefect.url, "ingest", request) == "r"
        first, second = prefect.bodies("POST /deployments/d/create_flow_run")
    assert first["parameters"] == {"request": {"tasks": ["mood"]}}
    assert first["idempotency_key"] == "key"
    assert second["idempotency_key"] not in ("key", "", None)


def test_a_flow_that_is_not_deployed_is_named() -> None:
    with listening(Prefect({})) as prefect, pytest.raises(NotFound, match="no deployment ingest/ptp-ingest"):
        trigger(prefect.url, "ingest", IngestRequest())


def a_line(number: int) -> dict[str, Any]:
    return {
        "id": str(number),
        "timestamp": f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}+00:00",
        "name": "ptpipeline",
        "level": 20,
        "message": f"line {number}",
    }


class Run:
    """A flow run that logs `lines` before its first look and three more behind it, and has ended at the second."""

    def __init__(self, lines: int, state: str) -> None:
        self.lines = [a_line(number) for number in range(lines)]
        self.more = [a_line(number) for number in range(lines, lines + 3)]
        self.state = state
        self.looks = 0

    def look(self, body: Any) -> Answer:
        self.looks += 1
        if self.looks == 2:
            self.lines += self.more
        ended = self.looks >= 2
        return 200, {
            "state_type": self.state if ended else "RUNNING",
            "state": {"name": self.state.title(), "message": "it ended"},
        }

    def page(self, body: Any) -> Answer:
        after = body["logs"].get("timestamp", {}).get("after_", "")
        found = [line for line in self.lines if line["timestamp"] >= after]
        return 200, found[body["offset"] : body["offset"] + body["limit"]]

    def routes(self) -> dict[str, Callable[[Any], Answer]]:
        rows = [{"data": json.dumps([{"task": "mood", "status": "promoted", "reason": r"\`ptp run\_\`: &lt;b>"}])}]
        return {
            "GET /flow_runs/r": self.look,
            "POST /logs/filter": self.page,
            "POST /artifacts/filter": lambda body: (200, rows),
        }


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"])
def test_every_line_of_a_run_is_told_once_and_then_its_end(state: str) -> None:
    with listening(Prefect(Run(5, state).routes())) as prefect:
        *lines, end = follow(prefect.url, "r")
    assert [line.message for line in lines] == [f"line {number}" for number in range(8)]  # type: ignore[union-attr]
    rows = [{"task": "mood", "status": "promoted", "reason": "`ptp run_`: <b>"}]  # without Markdown's escapes
    assert end == Finished(state=state, name=state.title(), message="it ended", rows=rows)


@pytest.mark.parametrize("lines", [199, 200, 201, 400])
def test_lines_beyond_a_page_are_told_too(lines: int) -> None:
    with listening(Prefect(Run(lines, "COMPLETED").routes())) as prefect:
        told = list(follow(prefect.url, "r"))
    assert len(told) == lines + 3 + 1


def test_who_follows_a_run_that_somebody_removes_is_told_so() -> None:
    with listening(Prefect({})) as prefect, pytest.raises(NotFound, match="flow run r was removed in Prefect"):
        list(follow(prefect.url, "r"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An answer has to come within a moment."""
    monkeypatch.setattr(api, "SECONDS", 0.3)
    api._client.cache_clear()
    yield
    api._client.cache_clear()


@pytest.mark.parametrize(("verb", "asked"), [("PATCH", 2), ("DELETE", 2), ("GET", 1), ("POST", 1)])
def test_a_change_that_is_answered_too_late_is_sent_again_if_that_changes_nothing(
    impatient: None, verb: str, asked: int
) -> None:
    def answer(body: Any) -> Answer:
        if len(prefect.asked) == 1:
            time.sleep(1)
        return 200, {}

    with listening(Prefect({f"{verb} /deployments/d": answer})) as prefect:
        late = contextlib.nullcontext() if asked > 1 else pytest.raises(ServiceUnavailable, match="ReadTimeout")
        with late:
            call(verb, f"{prefect.url}/deployments/d")
        assert len(prefect.asked) == asked


# ---------------------------------------------------------------- runs without a process


def lost(home: Path, *active: str) -> tuple[list[str], Prefect]:
    """The runs that are ended, of those that are active."""
    ended: dict[str, Callable[[Any], Answer]] = {
        f"POST /flow_runs/{run}/set_state": lambda body: (200, {}) for run in active
    }
    routes = {"POST /flow_runs/filter": lambda body: (200, [{"id": run} for run in active])} | ended
    with listening(Prefect(routes)) as prefect:
        return end_orphaned_runs(home, prefect.url), prefect


def test_a_run_whose_process_lives_is_not_ended(tmp_path: Path) -> None:
    environment = {**os.environ, "PTP_HOME": str(tmp_path), "PREFECT__FLOW_RUN_ID": "living"}
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        found, prefect = lost(tmp_path, "living", "gone")
        elsewhere, _ = lost(tmp_path / "another", "living")
    finally:
        process.kill()
        process.communicate()
    assert (found, elsewhere) == (["gone"], ["living"])
    (body,) = prefect.bodies("POST /flow_runs/gone/set_state")
    assert (body["state"]["type"], body["force"]) == ("CRASHED", True)


@contextmanager
def working(home: Path, run: str) -> Iterator[None]:
    """A process of the stack that works on that run."""
    environment = {**os.environ, "PTP_HOME": str(home), "PREFECT__FLOW_RUN_ID": run}
    process = spawn(["sleep", "600"], environment, home / "log")
    try:
        yield
    finally:
        stop(process)


def at_work(home: Path, deployment: str, state: str) -> list[str]:
    routes: dict[str, Callable[[Any], Answer]] = {
        "GET /flow_runs/r": lambda body: (200, {"name": "a night", "state_type": state, "deployment_id": "d"}),
        "GET /deployments/d": lambda body: (200, {"name": deployment}),
    }
    with working(home, "r"), listening(Prefect(routes)) as prefect:
        return runs_at_work(home, prefect.url, "user:password")


def test_a_run_that_has_ended_is_not_at_work_though_its_process_still_ends(tmp_path: Path) -> None:
    assert at_work(tmp_path, "ptp-nightly", "RUNNING") == ["a night"]
    assert at_work(tmp_path, "ptp-nightly", "COMPLETED") == []


def test_a_run_that_prefect_does_not_tell_of_is_at_work_all_the_same(tmp_path: Path) -> None:
    with working(tmp_path, "r"), listening(Prefect({})) as prefect:
        assert runs_at_work(tmp_path, prefect.url, "user:password") == ["r"]


def test_what_looks_every_few_minutes_is_not_at_work(tmp_path: Path) -> None:
    watched = a_task().model_copy(update={"watch": True})
    deployments = [describe_deployment(flow, [watched], [], "{{ $PWD }}") for flow in FLOWS]
    looking = [
        each["name"] for each in deployments if [s["schedule"]["cron"] for s in each["schedules"]] == ["*/5 * * * *"]
    ]
    assert len(looking) == 3
    assert [at_work(tmp_path, name, "RUNNING") for name in looking] == [[]] * 3


def test_without_a_pool_no_run_is_lost(tmp_path: Path) -> None:
    with listening(Prefect({})) as prefect:
        assert end_orphaned_runs(tmp_path, prefect.url) == []


def test_only_active_runs_of_our_pool_are_asked_for(tmp_path: Path) -> None:
    found, prefect = lost(tmp_path)
    (query,) = prefect.bodies("POST /flow_runs/filter")
    assert found == []
    assert query["flow_runs"]["state"]["type"]["any_"] == ["RUNNING", "PENDING", "CANCELLING"]
    assert query["work_pools"]["name"]["any_"]
