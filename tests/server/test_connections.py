"""Clients that stall are cut, and keep nobody else out."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from ptpipeline.server import connections
from ptpipeline.server.connections import PatientConnection
from ptpipeline.server.limits import Limits
from tests.http_server import count_connections
from tests.server.serving import Running, running
from tests.waiting import wait_for

ASK = {"model": "movies", "input": "the good film"}
HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
MANY = 400


class Cable(asyncio.Transport):
    """A transport that notes whether it was cut."""

    cut = False

    def abort(self) -> None:
        self.cut = True


STATES: dict[str, dict[str, bool]] = {
    "waits for a head": {},
    "is answered": {"response_complete": False, "more_body": False},
    "has its answer": {"response_complete": True, "more_body": False},
    "sends a body": {"response_complete": False, "more_body": True},
    "takes nothing": {"response_complete": False, "more_body": False},
}


def who_is_cut(states: list[str]) -> list[int]:
    """The places of the connections that are cut as these are made, each in its state before the next one comes."""

    async def connect() -> list[int]:
        config, server = uvicorn.Config(FastAPI(), log_config=None), ServerState()
        config.load()
        cables = [Cable() for _ in states]
        for cable, name in zip(cables, states, strict=True):
            made = PatientConnection(config, server, {})
            made.connection_made(cable)
            made.cycle = SimpleNamespace(**STATES[name]) if STATES[name] else None  # type: ignore[assignment]
            made.flow.write_paused = name == "takes nothing"
            made.stop_clock()
            await asyncio.sleep(0.001)  # so that each is older than the next
        assert len(server.connections) == sum(not cable.cut for cable in cables)
        return [place for place, cable in enumerate(cables) if cable.cut]

    return asyncio.run(connect())


ANSWERED = ["is answered"]


@pytest.mark.parametrize(
    ("states", "cut"),
    [
        (["waits for a head"] * 3, []),
        (["waits for a head"] * 4, [0]),
        (["waits for a head"] * 5, [0, 1]),
        ([*ANSWERED, "waits for a head", *ANSWERED * 2], [1]),
        ([*ANSWERED, "has its answer", *ANSWERED * 2], [1]),
        ([*ANSWERED, "sends a body", *ANSWERED * 2], [1]),
        ([*ANSWERED, "takes nothing", *ANSWERED * 2], [1]),
        (ANSWERED * 6, []),
        (ANSWERED * 8, [6, 7]),
    ],
)
def test_the_oldest_that_waits_for_its_client_gives_way_and_else_the_newest_beyond_twice_as_many(
    monkeypatch: pytest.MonkeyPatch, states: list[str], cut: list[int]
) -> None:
    monkeypatch.setattr(connections, "MOST", 3)
    assert who_is_cut(states) == cut


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server whose deadlines are short."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 2.0)
    monkeypatch.setattr(connections, "IDLE_SECONDS", 1.0)
    monkeypatch.setattr(connections, "STALL_SECONDS", 2.0)
    monkeypatch.setattr(connections, "MOST", 64)
    with running(tmp_path, limits=Limits(body_seconds=2.0)) as server:
        yield server


STALLED = {
    "silent": b"",
    "in the head": HEAD,
    "in the body": HEAD + b"Content-Length: 9\r\n\r\n{",
    "behind a refusal": b"GET /none HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{",
    "behind an answer": b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "that expect to go on": HEAD + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n",
}


@pytest.mark.parametrize("kind", STALLED)
def test_400_stalled_clients_neither_stay_nor_keep_others_out(served: Running, kind: str) -> None:
    port = served.server.port
    with ExitStack() as opened:
        for _ in range(MANY):
            client = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            with suppress(OSError):  # it has given way already
                client.sendall(STALLED[kind])
        for _ in range(5):
            assert httpx.post(f"{served.url}/v1/classify", json=ASK, timeout=10).status_code == 200
        assert count_connections(port) <= connections.MOST + 1
        wait_for(lambda: count_connections(port) == 0, 20)


def test_a_client_that_trickles_its_head_is_cut(served: Running) -> None:
    with socket.create_connection(("127.0.0.1", served.server.port)) as client:
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 10:
                client.sendall(b"X" if time.monotonic() - began > 0.1 else HEAD)
                time.sleep(0.1)
        assert time.monotonic() - began < 5


def test_a_client_that_takes_no_answer_is_cut(served: Running) -> None:
    """It asks for more than its and the server's systems keep for it, 4 MB each, and reads nothing."""
    request = b"GET /page.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", served.server.port))
        client.settimeout(1)
        with suppress(OSError):
            client.sendall(request * 1500)
        httpx.get(f"{served.url}/healthz").raise_for_status()  # by now the server has met both
        assert count_connections(served.server.port) >= 1
        wait_for(lambda: count_connections(served.server.port) == 0, 20)


def test_a_slow_but_steady_client_gets_its_answer(served: Running) -> None:
    body = b'{"model": "movies", "input": "the good film"}'
    with socket.create_connection(("127.0.0.1", served.server.port)) as client:
        client.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        for place in range(0, len(body), 10):
            client.sendall(body[place : place + 10])
            time.sleep(0.1)
        found = b""
        while part := client.recv(10):
            found += part
        assert found.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("offered", ["h2c", "websocket"])
def test_a_client_that_offers_another_protocol_is_answered_without_a_warning(
    served: Running, caplog: pytest.LogCaptureFixture, offered: str
) -> None:
    """Java's own client offers HTTP/2 on each connection."""
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": offered, "HTTP2-Settings": "AAEAAEAAAAIAAAAB"}
    response = httpx.post(f"{served.url}/v1/classify", json=ASK, headers=headers)
    assert (response.status_code, response.http_version) == (200, "HTTP/1.1")
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []


@pytest.mark.parametrize("answered", [False, True], ids=["before its refusal", "behind its refusal"])
def test_a_body_that_is_no_http_ends_the_connection_without_a_traceback(
    served: Running, caplog: pytest.LogCaptureFixture, answered: bool
) -> None:
    """Whoever reaches the port could fill the log, without a token."""
    head = HEAD.replace(b"json", b"pdf") + b"Transfer-Encoding: chunked\r\n\r\n"  # it is refused unread
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=10) as client:
        client.sendall(head if answered else head + b"zz\r\n")
        assert client.recv(12) == (b"HTTP/1.1 415" if answered else b"HTTP/1.1 400")
        client.sendall(b"zz\r\n")
        with suppress(ConnectionResetError):
            while client.recv(4096):
                pass
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_connection_serves_several_requests(served: Running) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            assert client.post(f"{served.url}/v1/classify", json=ASK).status_code == 200
        assert count_connections(served.server.port) == 1


def test_who_gives_way_is_never_who_waits_for_an_answer(served: Running) -> None:
    body = {"model": "writer", "prompt": "a film", "max_tokens": 240, "stream": True}
    with ExitStack() as opened, httpx.stream("POST", f"{served.url}/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        for _ in range(3 * connections.MOST):
            opened.enter_context(socket.create_connection(("127.0.0.1", served.server.port)))
        assert [line for line in lines if line][-1] == "data: [DONE]"
