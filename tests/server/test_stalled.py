"""400 stalled clients at the limits as they are shipped: others are served meanwhile, and memory stays bounded."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from ptpipeline.server.limits import Limits
from tests.http_server import count_connections
from tests.server.serving import Running, running
from tests.waiting import wait_for

MANY = 400
MEMORY = 400 * 2**20  # bytes that they may cost together: bodies, and 256 KiB that were read of each connection
HEAD = "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
STREAM = json.dumps({"model": "writer", "prompt": "a film", "max_tokens": 60, "stream": True}).encode()
STALLED = {
    "silent": b"",
    "in the head": HEAD.encode()[:40],
    "at the end of a large body": HEAD.format("/v1/classify", 2**20).encode() + b" " * (2**20 - 1),
    "with a stream that they do not take": HEAD.format("/v1/completions", len(STREAM)).encode() + STREAM,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.mark.parametrize("kind", STALLED)
def test_others_are_served_and_memory_stays_bounded(served: Running, kind: str) -> None:
    asked = {"model": "movies", "input": "the good film"}
    httpx.post(f"{served.url}/v1/classify", json=asked, timeout=60).raise_for_status()
    before = psutil.Process().memory_info().rss
    with ExitStack() as opened:
        for _ in range(MANY):
            client = opened.enter_context(socket.create_connection(("127.0.0.1", served.server.port), timeout=30))
            with suppress(OSError):  # it was refused before it sent all
                client.sendall(STALLED[kind])
        if kind != "at the end of a large body":  # of those, most are refused
            wait_for(lambda: count_connections(served.server.port) >= MANY, 60)
        for _ in range(5):
            began = time.monotonic()
            assert httpx.post(f"{served.url}/v1/classify", json=asked, timeout=60).status_code == 200
            assert time.monotonic() - began < 10
        assert psutil.Process().memory_info().rss - before < MEMORY


def test_a_large_body_is_refused_only_while_others_have_all_the_room(tmp_path: Path) -> None:
    def ask(size: int) -> str:
        body = {"model": "movies", "input": "the good film", "pad": "x" * size}  # an unknown field: it was read whole
        answer = httpx.post(f"{server.url}/v1/classify", json=body, timeout=60)
        assert answer.headers.get("retry-after") == ("1" if answer.status_code == 429 else None)
        return str(answer.json()["error"]["code"])

    with running(tmp_path, limits=Limits(large_bytes=400_000)) as server:
        for _ in range(4):
            assert ask(300_000) == "invalid_request"
        with socket.create_connection(("127.0.0.1", server.server.port)) as client:
            client.sendall(HEAD.format("/v1/classify", 400_000).encode() + b" " * 399_999)
            time.sleep(0.5)
            assert (ask(300_000), ask(60_000)) == ("overloaded", "invalid_request")
        time.sleep(0.5)
        for _ in range(4):
            assert ask(300_000) == "invalid_request"
