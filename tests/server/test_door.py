"""What every request passes: from where, how much, how fast; and what the log says of it."""

import asyncio
import json
import logging
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from ptpipeline.errors import BaseModelError, ContextError, PtpError, TimedOut
from ptpipeline.server.door import Door, Ending, _check_own
from ptpipeline.server.limits import Limits
from ptpipeline.server.metrics import Metrics
from ptpipeline.server.refusals import Refusal, refuse
from ptpipeline.serving.answerer import Load, Piece, Sampling, ignore
from ptpipeline.task.template import Fields
from tests.server.serving import Running, running
from tests.waiting import wait_for

ASK = {"model": "movies", "input": "the good film"}
HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
LONG = {"model": "writer", "prompt": "a film", "max_tokens": 240}


@pytest.fixture(scope="module")
def anyone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that asks for no token."""
    with running(tmp_path_factory.mktemp("anyone"), limits=Limits(body_bytes=2000, texts=4)) as server:
        yield server


def classify(server: Running, token: str | None = None, **headers: str) -> httpx.Response:
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return httpx.post(f"{server.url}/v1/classify", json=ASK, headers=headers)


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def raw(server: Running, request: bytes, seconds: float = 5.0) -> bytes:
    """What the server sends back for these bytes, until it closes or says no more for so long."""
    with socket.create_connection(("127.0.0.1", server.server.port)) as client:
        client.settimeout(seconds)
        client.sendall(request)
        found = b""
        with suppress(TimeoutError):
            while part := client.recv(65536):
                found += part
        return found


# ---------------------------------------------------------------- other pages of the same browser


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_a_name_of_somebody_else_is_refused(anyone: Running, host: str) -> None:
    assert code(classify(anyone, Host=host)) == (403, "foreign_origin")


def test_a_second_name_is_refused(anyone: Running) -> None:
    asked = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert raw(anyone, asked).startswith(b"HTTP/1.1 400 ")
    own = (b"host", b"127.0.0.1")
    for headers in ([own, own], [own, (b"origin", b"http://127.0.0.1"), (b"origin", b"http://evil.example")]):
        with pytest.raises(Refusal, match="only requests to its own address"):  # whatever else reads HTTP before it
            _check_own(Headers(raw=headers))


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null"])
def test_a_page_of_another_server_is_refused(anyone: Running, origin: str) -> None:
    assert code(classify(anyone, Origin=origin)) == (403, "foreign_origin")


def test_an_origin_that_ends_like_the_own_one_is_refused() -> None:
    headers = [(b"host", b"127.0.0.1:80"), (b"origin", b"http://evil.example//127.0.0.1:80")]
    with pytest.raises(Refusal, match="only requests to its own address"):
        _check_own(Headers(raw=headers))


def test_the_own_page_may_ask(anyone: Running) -> None:
    assert classify(anyone, Origin=anyone.url).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_form_can_send_is_refused(anyone: Running, kind: str) -> None:
    response = httpx.post(f"{anyone.url}/v1/classify", content=json.dumps(ASK), headers={"Content-Type": kind})
    assert code(response) == (415, "not_json")


# ---------------------------------------------------------------- size and time


@pytest.mark.parametrize(
    "headers", [{"Content-Type": "Application/JSON; charset=utf-8"}, {"Content-Encoding": "Identity"}]
)
def test_json_is_known_however_its_header_is_written(anyone: Running, headers: dict[str, str]) -> None:
    assert httpx.post(f"{anyone.url}/v1/classify", json=ASK, headers=headers).status_code == 200


def test_a_large_body_is_refused_by_its_head(anyone: Running) -> None:
    assert raw(anyone, HEAD + b"Content-Length: 2001\r\n\r\n", 1.0).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_just_the_bound_is_read(anyone: Running, chunked: bool) -> None:
    body = json.dumps(ASK).encode().ljust(2000)
    content = iter([body[:1000], body[1000:]]) if chunked else body
    headers = {"Content-Type": "application/json"}
    assert httpx.post(f"{anyone.url}/v1/classify", content=content, headers=headers).status_code == 200


def test_a_large_body_without_a_length_is_refused(anyone: Running) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 100

    headers = {"Content-Type": "application/json"}
    assert code(httpx.post(f"{anyone.url}/v1/classify", content=parts(), headers=headers)) == (413, "too_large")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [("/v1/classify", {"model": "movies"}, "input"), ("/v1/completions", {"model": "writer"}, "prompt")],
)
def test_a_request_has_a_bounded_number_of_texts(
    anyone: Running, path: str, body: dict[str, object], field: str
) -> None:
    most = httpx.post(f"{anyone.url}{path}", json=body | {field: ["film"] * 4})
    assert most.status_code == 200
    assert code(httpx.post(f"{anyone.url}{path}", json=body | {field: ["film"] * 5})) == (400, "too_many")


def test_a_body_that_does_not_come_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(body_seconds=0.5)) as server:
        assert raw(server, HEAD + b"Content-Length: 9\r\n\r\n{", 10.0).startswith(b"HTTP/1.1 408 ")


def test_a_full_queue_says_when_to_ask_again(tmp_path: Path) -> None:
    with running(tmp_path, waiting=4) as server:
        response = httpx.post(f"{server.url}/v1/classify", json={"model": "movies", "input": ["a film"] * 4})
        assert response.status_code == 200
        with stream(server):
            response = httpx.post(f"{server.url}/v1/classify", json={"model": "movies", "input": ["a film"] * 4})
            assert code(response) == (429, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
            assert httpx.get(f"{server.url}/v1/status").json()["waiting"] == 1


def test_a_server_whose_computing_thread_has_ended_is_not_healthy(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        server.answerer.close()
        assert httpx.get(f"{server.url}/healthz").status_code == 503


# ---------------------------------------------------------------- clients that leave


@contextmanager
def stream(server: Running) -> Iterator[Iterator[str]]:
    """The lines of a long generation, which has begun."""
    with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}, timeout=30) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        yield lines


class Unobserved:
    """Answers nothing that anybody counts."""

    def observe(self) -> Load:
        return Load(0, 0, 0, 0, 0, 0, 0, alive=True)


class Endless(Unobserved):
    """Never comes to an end by itself; counts who asked and who is still waited for."""

    def __init__(self) -> None:
        self.asked = self.under_way = 0

    @contextmanager
    def _count(self) -> Iterator[None]:
        self.asked += 1
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def classify(
        self, digest: str, texts: Sequence[Fields], patience: float, count: Callable[[int], object] = ignore
    ) -> list[dict[str, float] | PtpError]:
        with self._count():
            await asyncio.sleep(3600)
        return []

    async def generate(self, digest: str, fields: Fields, sampling: Sampling, patience: float) -> AsyncIterator[Piece]:
        with self._count():
            while True:
                yield Piece("x", 1, 1)
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", ASK),
        ("/v1/completions", {"model": "writer", "prompt": "a film"}),
        ("/v1/completions", {"model": "writer", "prompt": ["a film"] * 3}),
        ("/v1/completions", {"model": "writer", "prompt": "a film", "stream": True}),
    ],
)
def test_a_client_that_leaves_ends_what_it_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, body: dict[str, object]
) -> None:
    caplog.set_level(logging.INFO)
    answers = Endless()
    with running(tmp_path, answers=answers) as server:
        with (
            suppress(httpx.ReadTimeout),
            httpx.stream("POST", f"{server.url}{path}", json=body, timeout=1.0) as response,
        ):
            next(response.iter_lines())
        deadline = time.monotonic() + 5
        while answers.under_way:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert answers.asked == (3 if isinstance(body.get("prompt"), list) else 1)
    assert re.search(f"POST {path} .* {200 if body.get('stream') else 499} in ", caplog.text)


def test_what_fails_behind_the_begin_of_an_answer_sends_no_second_one() -> None:
    """The client would take it for a part of the first."""

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("it grew too long")

    scope = {"type": "http", "method": "GET", "path": "/healthz", "headers": [(b"host", b"127.0.0.1")]}
    asked, sent = [{"type": "http.request"}], list[Message]()

    async def receive() -> Message:
        return asked.pop() if asked else await asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Door(fail, None, Limits(), Metrics(None, None), Ending())(scope, receive, send))  # type: ignore[arg-type]
    assert [(message["type"], message["status"]) for message in sent] == [("http.response.start", 200)]


# ---------------------------------------------------------------- the log


def test_no_text_comes_into_the_log(anyone: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "zebra"
    for body in (
        {"model": "movies", "input": secret},
        {"model": "movies", "input": [secret, {secret: secret}, f"{secret} " * 150]},
        {"model": secret, "input": secret},
        {"model": "movies", secret: secret},
        {"model": "writer", "input": secret},
    ):
        httpx.post(f"{anyone.url}/v1/classify", json=body)
    httpx.post(f"{anyone.url}/v1/completions", json={"model": "writer", "prompt": secret, "stream": True})
    httpx.get(f"{anyone.url}/v1/{secret}?{secret}")
    httpx.post(
        f"{anyone.url}/v1/classify", content=f'{{"{secret}'.encode(), headers={"Content-Type": "application/json"}
    )
    assert "/v1/classify movies@2 200 in " in caplog.text
    ours = [record for record in caplog.records if record.name.startswith(("ptpipeline", "uvicorn", "fastapi"))]
    assert [record.getMessage() for record in ours if secret in record.getMessage()] == []


def test_a_method_that_nobody_knows_comes_not_into_the_log(anyone: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asked = b"ZEBRA" * 2000 + b" /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert raw(anyone, asked).startswith(b"HTTP/1.1 405 ")
    wait_for(lambda: "other /healthz - 405 in " in caplog.text, 10)  # told when the client has its answer
    assert "ZEBRA" not in caplog.text


def test_texts_come_into_the_log_if_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running(tmp_path, log_texts=True) as server:
        classify(server)
    assert "the good film" in caplog.text


class Broken(Unobserved):
    """Answers with an error that nobody foresaw, whose message is private; a stream fails behind its first piece."""

    async def classify(
        self, digest: str, texts: Sequence[Fields], patience: float, count: Callable[[int], object] = ignore
    ) -> list[dict[str, float] | PtpError]:
        raise RuntimeError(f"cannot answer {texts}")

    async def generate(self, digest: str, fields: Fields, sampling: Sampling, patience: float) -> AsyncIterator[Piece]:
        yield Piece("one", 1, 1)
        await asyncio.sleep(0)
        raise ContextError("it grew too long") if sampling.seed else RuntimeError(f"cannot answer {fields}")


def test_an_unforeseen_error_tells_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(tmp_path, answers=Broken()) as server:
        response = classify(server)
        assert code(response) == (500, "failed")
        assert response.headers["x-request-id"] in response.text
        assert "good film" not in caplog.text + response.text
        assert "unexpected RuntimeError at " in caplog.text


def test_each_text_of_a_request_that_fails_is_counted(tmp_path: Path) -> None:
    with running(tmp_path, answers=Broken()) as server:
        asked = {"model": "writer", "prompt": ["a film"] * 3}
        assert code(httpx.post(f"{server.url}/v1/completions", json=asked)) == (500, "failed")
        assert 'ptp_serve_errors_total{task="writer",version="writer@1"} 3.0' in httpx.get(f"{server.url}/metrics").text


@pytest.mark.parametrize(("kind", "told"), [(BaseModelError, (500, "server_error")), (TimedOut, (504, "timeout"))])
def test_what_another_server_refuses_is_for_whoever_runs_this_one(
    caplog: pytest.LogCaptureFixture, kind: type[PtpError], told: tuple[int, str]
) -> None:
    refusal = refuse(kind("vLLM at http://gpu:8000 refuses the request"), "req-1")
    assert (refusal.status_code, refusal.code) == told
    assert "gpu" not in str(refusal.to_json())
    assert "req-1: vLLM at http://gpu:8000 refuses the request" in caplog.text


@pytest.mark.parametrize(("seed", "expected"), [(1, "context_length_exceeded"), (0, "failed")])
def test_a_stream_that_fails_tells_it_as_an_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int, expected: str
) -> None:
    with running(tmp_path, answers=Broken()) as server:
        body = {"model": "writer", "prompt": "a private text", "stream": True, "seed": seed}
        events = httpx.post(f"{server.url}/v1/completions", json=body).text.strip().split("\n\n")
        assert [event.startswith("data: ") for event in events] == [True, True]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == expected
        assert 'ptp_serve_errors_total{task="writer",version="writer@1"} 1.0' in httpx.get(f"{server.url}/metrics").text
        assert "private" not in caplog.text + events[-1]


def test_every_answer_has_its_id_and_is_not_kept(anyone: Running) -> None:
    for response in (classify(anyone), httpx.get(f"{anyone.url}/none"), httpx.get(f"{anyone.url}/")):
        assert response.headers["x-request-id"].startswith("req-")
        assert (response.headers["cache-control"], response.headers["x-content-type-options"]) == (
            "no-store",
            "nosniff",
        )


def test_the_page_stands_in_no_other_page_and_runs_its_own_scripts_alone(anyone: Running) -> None:
    headers = httpx.get(f"{anyone.url}/").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert {policy[name] for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert headers["x-frame-options"] == "DENY"


def test_many_clients_get_the_answers_of_one(anyone: Running) -> None:
    texts = ["the good film", "awful plot", "a dull story", "great scene"] * 8
    alone = [httpx.post(f"{anyone.url}/v1/classify", json=ASK | {"input": text}).json()["data"] for text in texts[:4]]
    found: dict[int, object] = {}

    def ask(number: int) -> None:
        response = httpx.post(f"{anyone.url}/v1/classify", json=ASK | {"input": texts[number]}, timeout=30)
        found[number] = response.json()["data"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(len(texts)):
        (one,), (expected,) = found[number], alone[number % 4]  # type: ignore[misc]
        assert one["label"] == expected["label"]
        assert one["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)


def test_a_body_of_two_lengths_is_refused_and_nothing_behind_it_is_read(anyone: Running) -> None:
    """A proxy that believes the other length than we do would send us the rest as somebody else's request."""
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    body = json.dumps(ASK).encode()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    lengths = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % (len(chunked) + len(hidden))
    answer = raw(anyone, HEAD + lengths + chunked + hidden)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"two_lengths" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
