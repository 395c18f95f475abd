"""The client of Prefect's server, made from whatever the environment names; and what is sent, sent again, and told."""

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.server import api
from flows.server.api import call, read_date
from ptpipeline.errors import ServiceUnavailable, SettingsError
from tests.flows.server.test_prefect import Answer, Prefect, listening
from tests.http_server import Quiet, serve

AWAY = "http://192.0.2.1:9/api"


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
            self.answer(200)

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
