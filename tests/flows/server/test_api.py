"""The client of Prefect's server, made from whatever the environment names; and what is sent, sent again, and told."""

import base64
import gzip
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flows.requests import ReconcileRequest
from flows.server import api, bootstrap
from flows.server.api import call, read_date
from flows.server.deploy import read_deployments
from flows.server.pauses import explain_wait, list_pauses
from flows.server.schedules import find_slug, list_due_runs
from flows.server.trigger import follow, trigger
from ptpipeline.errors import ServiceUnavailable, SettingsError
from tests.flows.server.test_prefect import Answer, Prefect, listening
from tests.http_server import Quiet, serve

AWAY = "http://192.0.2.1:9/api"


class Everything(Prefect):
    """Answers one thing, whatever it is asked."""

    def __init__(self, told: Any) -> None:
        super().__init__({})
        self._told = told

    def answer(self, what: str, body: Any) -> Answer:
        return 200, self._told


class Nested(Everything):
    """Answers one thing, but has neither lines nor tables of a run."""

    def answer(self, what: str, body: Any) -> Answer:
        return (200, []) if what in ("POST /logs/filter", "POST /artifacts/filter") else super().answer(what, body)


def start_reconcile(api: str) -> object:
    return trigger(api, "reconcile", ReconcileRequest())


def find_maker(api: str) -> object:
    return find_slug(api, "a run")


def look_at_pool(api: str) -> object:
    return bootstrap.look_at_pool(api, "process")


def list_no_due_runs(api: str) -> object:
    return list_due_runs(api, {"id": "a deployment", "schedules": []})


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has made no client, in an environment that names no proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    api._client.cache_clear()
    yield
    api._client.cache_clear()


@pytest.mark.parametrize("address", ["http://[::1", "socks5://127.0.0.1:9", "ftp://127.0.0.1:9", "http://host:port"])
def test_a_proxy_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ALL_PROXY", address)
    with pytest.raises(SettingsError, match=r"ALL_PROXY names cannot be used .*exempt Prefect's host by NO_PROXY"):
        api.call("GET", AWAY)


def test_certificates_that_are_not_there_are_one_sentence(tmp_path: Path) -> None:
    code = f"from flows.server.api import call; call('GET', {AWAY!r})"  # a process reads them once
    environment = os.environ | {"SSL_CERT_FILE": str(tmp_path / "missing.pem")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "SettingsError: the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read" in done.stderr


# ---------------------------------------------------------------- calls


class Asked(NamedTuple):
    """A server, and which credentials it was shown."""

    url: str
    shown: list[str]


@pytest.fixture
def server() -> Iterator[Asked]:
    shown: list[str] = []

    class Noting(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            encoded = self.headers.get("Authorization", "").removeprefix("Basic ")
            shown.append(base64.b64decode(encoded).decode())
            self.answer(200, b"{}")

    with serve(Noting) as url:
        yield Asked(f"{url}/api", shown)


def test_a_credential_that_is_given_comes_before_that_of_the_environment(
    server: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    call("GET", server.url)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "user:of the: environment")
    call("GET", server.url)
    call("GET", server.url, credential="ptp:of the stack")
    assert server.shown == ["", "user:of the: environment", "ptp:of the stack"]


def test_this_machine_is_reached_beside_the_proxy(server: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    call("GET", server.url)
    assert len(server.shown) == 1


def test_a_server_that_is_busy_is_asked_again() -> None:
    def answer(_: object) -> Answer:
        return (503, {}) if len(prefect.asked) == 1 else (200, {"done": True})

    with listening(Prefect({"POST /x": answer})) as prefect:
        assert call("POST", f"{prefect.url}/x", {}) == {"done": True}


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_told_with_what_to_set(status: int) -> None:
    refused = Prefect({"GET /x": lambda _: (status, {})})
    told = pytest.raises(SettingsError, match=rf"refuses the credentials \({status}\): set PREFECT_API_AUTH_STRING")
    with listening(refused) as prefect, told:
        call("GET", f"{prefect.url}/x")


@pytest.mark.parametrize(
    ("answer", "told"),
    [({"detail": "one of a, b"}, "one of a, b"), ({"exception": "x"}, "409 {"), ([], "409"), (b"<html>", "409 <html>")],
)
def test_a_refusal_is_told_in_the_servers_words(answer: object, told: str) -> None:
    refusing = Prefect({"POST /x/": lambda _: (409, answer)})
    with listening(refusing) as prefect, pytest.raises(SettingsError) as raised:
        call("POST", f"{prefect.url}/x/", {})
    assert str(raised.value).startswith(f"Prefect refuses POST x/: {told}")


@pytest.mark.parametrize("answer", [b"", b"null"])
def test_a_change_may_be_answered_by_nothing(answer: bytes) -> None:
    class Silent(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(201, answer)

    with serve(Silent) as url:
        assert call("POST", f"{url}/api/logs/", []) is None


def test_a_number_of_runs_is_an_answer() -> None:
    with listening(Prefect({"POST /flow_runs/count": lambda _: (200, 7)})) as prefect:
        assert call("POST", f"{prefect.url}/flow_runs/count", {}) == 7


def test_a_refusal_is_told_briefly_and_without_control_characters() -> None:
    refusing = Prefect({"GET /x": lambda _: (400, {"detail": "\x1b]0;title\x07" + "x" * 70_000})})
    with listening(refusing) as prefect, pytest.raises(SettingsError) as raised:
        call("GET", f"{prefect.url}/x")
    assert len(str(raised.value)) < 700
    assert str(raised.value).isprintable()


def test_a_server_that_fails_is_away() -> None:
    with listening(Prefect({"GET /x": lambda _: (500, {})})) as prefect, pytest.raises(ServiceUnavailable, match="500"):
        call("GET", f"{prefect.url}/x")


def test_who_refuses_tells_the_time_all_the_same() -> None:
    with listening(Prefect({"GET /health": lambda _: (401, {})})) as prefect:
        told = read_date(prefect.url)
    assert told is not None
    assert abs((datetime.now(UTC) - told).total_seconds()) < 60


def test_a_server_that_tells_no_time_that_can_be_read_tells_none() -> None:
    class Timeless(Quiet):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return "soon"

        def do_GET(self) -> None:  # noqa: N802
            self.answer(200)

    with serve(Timeless) as url:
        assert read_date(f"{url}/api") is None
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        read_date(f"{url}/api")


# ---------------------------------------------------------------- servers that are not Prefect's


OTHERS: dict[str, Any] = {
    "an object": {},
    "a list": [],
    "a list of objects": [{}],
    "a list of nothing": [None],
    "nothing": None,
    "a text": "x",
    "a number": 7,
}


@pytest.mark.parametrize("ask", [start_reconcile, find_maker, list_pauses, look_at_pool])
@pytest.mark.parametrize("answer", OTHERS.values(), ids=OTHERS.keys())
def test_another_servers_answers_are_one_sentence(ask: Callable[[str], object], answer: Any) -> None:
    with listening(Everything(answer)) as other:
        with pytest.raises(SettingsError) as raised:
            ask(other.url)
        assert str(raised.value).startswith(f"PTP_PREFECT: {other.url}/")
        assert "does not answer as Prefect does" in str(raised.value)


@pytest.mark.parametrize("ask", [read_deployments, list_no_due_runs])
@pytest.mark.parametrize("answer", [{}, [{}], [None], None, "x", 7])
def test_another_servers_lists_are_one_sentence(ask: Callable[[str], object], answer: Any) -> None:
    with listening(Everything(answer)) as other, pytest.raises(SettingsError, match="does not answer as Prefect does"):
        ask(other.url)


SCHEDULE = {"id": "s", "slug": "a", "active": True, "schedule": {"cron": "0 2 * * *"}}
DEPLOYMENT = {
    "name": "ptp-nightly",
    "schedules": [SCHEDULE],
    "global_concurrency_limit": None,
    "concurrency_options": None,
}
DUE = {"auto_scheduled": True, "estimated_start_time_delta": 1.0, "parameters": {}, "created_by": None}
ENDED = {"state_type": "FAILED", "state": None}
WAITS = {"state_type": "SCHEDULED", "work_pool_name": "ptp", "work_queue_name": "q", "state": None}
NULLS: dict[str, tuple[Callable[[str], object], Any]] = {
    "schedules": (read_deployments, [DEPLOYMENT | {"schedules": None}]),
    "a schedule": (read_deployments, [DEPLOYMENT | {"schedules": [None]}]),
    "the times of a schedule": (read_deployments, [DEPLOYMENT | {"schedules": [SCHEDULE | {"schedule": None}]}]),
    "a limit": (read_deployments, [DEPLOYMENT | {"global_concurrency_limit": "x"}]),
    "the parameters of a run": (list_no_due_runs, [DUE | {"parameters": None}]),
    "how late a run is": (list_no_due_runs, [DUE | {"estimated_start_time_delta": None}]),
    "who made a run": (find_maker, {"created_by": "x"}),
    "the state of a run that waits": (lambda url: explain_wait(url, WAITS), {}),
    "the state of a run that ended": (lambda url: list(follow(url, "r")), ENDED),
}


@pytest.mark.parametrize("kind", NULLS)
def test_null_in_the_place_of_a_field_is_one_sentence(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.server.trigger._POLL_SECONDS", 0.01)
    ask, answer = NULLS[kind]
    with listening(Nested(answer)) as other, pytest.raises(SettingsError, match="does not answer as Prefect does"):
        ask(other.url)


@pytest.mark.parametrize("verb", ["GET", "POST", "PATCH", "DELETE"])
def test_a_redirect_is_refused_and_not_followed(verb: str) -> None:
    shown: list[str] = []

    class Elsewhere(Quiet):
        def handle_any(self) -> None:
            shown.append(self.headers.get("Authorization", ""))
            self.answer(200, b"{}")

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

    class Redirecting(Quiet):
        def redirect(self) -> None:
            self.send_response(307)
            self.send_header("Location", f"{elsewhere}/api/x")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_PATCH = do_DELETE = redirect  # noqa: N815

    told = pytest.raises(SettingsError, match="answers 307, and redirects are not followed; set it to the address")
    with serve(Elsewhere) as elsewhere, serve(Redirecting) as url, told:
        call(verb, f"{url}/api/x", credential="owner:secret")
    assert shown == []


def test_no_more_is_read_than_an_answer_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_ANSWER", 2**20)
    with serve(_endless(b" " * 2**16, 0.0)) as url, pytest.raises(SettingsError, match="with more than 1048576 bytes"):
        call("GET", f"{url}/api/x")


def test_an_answer_that_is_packed_unasked_is_not_unfolded() -> None:
    """A piece of gzip within gzip unfolds a million times, before anybody can count what comes of it."""
    asked: list[str] = []

    class Bomb(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            asked.append(self.headers["Accept-Encoding"])
            bomb = gzip.compress(gzip.compress(b"{}"))
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip, gzip")
            self.send_header("Content-Length", str(len(bomb)))
            self.end_headers()
            self.wfile.write(bomb)

    with serve(Bomb) as url, pytest.raises(SettingsError, match="answers something other than JSON"):
        call("GET", f"{url}/api/x")
    assert asked == ["identity"]


def test_an_answer_that_trickles_ends_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SECONDS", 0.2)
    with serve(_endless(b" ", 0.02)) as url, pytest.raises(ServiceUnavailable, match="does not answer"):
        call("GET", f"{url}/api/x")


@pytest.mark.parametrize("date", ["Fri, 99 Nov 99999999999999999999 25:00:00 GMT", "yesterday", ""])
def test_a_date_that_is_none_is_not_told(date: str) -> None:
    class Dated(Quiet):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return date

        def do_GET(self) -> None:  # noqa: N802
            self.answer(200)

    with serve(Dated) as url:
        assert read_date(f"{url}/api") is None


def _endless(piece: bytes, pause: float) -> type[Quiet]:
    class Endless(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # who asked leaves
                while True:
                    self.wfile.write(piece)
                    time.sleep(pause)

    return Endless
