"""Calls to Prefect's API: what is sent along, what is sent again, and what is told of a refusal."""

import base64
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from flows.requests import PromoteRequest
from flows.server import api
from flows.server.api import call
from flows.server.trigger import trigger
from ptpipeline.errors import ServiceUnavailable, SettingsError
from tests.flows.server.test_prefect import Answer, Prefect, listening
from tests.http_server import Quiet, serve


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
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    api._client.cache_clear()
    try:
        call("GET", server.url)
    finally:
        api._client.cache_clear()
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
    with listening(refusing) as prefect, pytest.raises(SettingsError, match="Prefect refuses POST x/: ") as raised:
        call("POST", f"{prefect.url}/x/", {})
    assert told in str(raised.value)


def test_a_server_that_fails_is_away() -> None:
    with listening(Prefect({"GET /x": lambda _: (500, {})})) as prefect, pytest.raises(ServiceUnavailable, match="500"):
        call("GET", f"{prefect.url}/x")


# ---------------------------------------------------------------- a run that is started

DEPLOYED = {"GET /deployments/name/promote/ptp-promote": lambda _: (200, {"id": "d"})}
REQUEST = PromoteRequest(task="mood", version=3, reason="good")


def test_a_run_is_named_and_tagged_after_its_task() -> None:
    taking = {"POST /deployments/d/create_flow_run": lambda _: (201, {"id": "r"})}
    with listening(Prefect(DEPLOYED | taking)) as prefect:
        trigger(prefect.url, "promote", REQUEST)
    [body] = prefect.bodies("POST /deployments/d/create_flow_run")
    assert (body["tags"], body["name"].split()[::2]) == (["task:mood"], ["promote", "mood@3"])


@pytest.mark.parametrize(
    ("detail", "hinted"), [("'tone' is not one of ['mood']", True), ("the reason is missing", False)]
)
def test_a_task_that_prefect_does_not_know_is_told_with_the_verb_that_makes_it_known(detail: str, hinted: bool) -> None:
    refusing = {"POST /deployments/d/create_flow_run": lambda _: (409, {"detail": detail})}
    with listening(Prefect(DEPLOYED | refusing)) as prefect, pytest.raises(SettingsError) as raised:
        trigger(prefect.url, "promote", REQUEST)
    assert detail in str(raised.value)
    assert ("`ptp up` makes a new task known to Prefect" in str(raised.value)) == hinted
