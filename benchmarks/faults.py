"""A proxy that does to HTTP what networks and dying servers do: silence, errors, cut connections, repeated requests.

It stands in front of a real server on loopback and is deaf to what the requests mean. Every header passes through as it
came, Host included, so S3's signatures (version 4) stay valid: the client signs the proxy's address, and the server
verifies what the Host header says.

    with FaultProxy("http://127.0.0.1:8333", seeded(7, share=0.1)) as proxy:
        S3Store("bucket", endpoint=proxy.endpoint)
    proxy.injected[Fault.CUT_AFTER]
"""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit


class Fault(StrEnum):
    """What becomes of one request, and whether the server has done what it asks for when the client learns of the
    fault.
    """

    ERROR_BEFORE = "500, never forwarded"
    ERROR_AFTER = "500 in place of the server's answer"
    CUT_BEFORE = "connection cut, never forwarded"
    CUT_AFTER = "connection cut in place of the server's answer"
    CUT_WITHIN = "connection cut in the middle of the answer's body"
    SILENT_BEFORE = "no answer, never forwarded"
    SILENT_AFTER = "no answer, forwarded"
    LATE = "connection cut, forwarded after a while"
    TWICE = "forwarded twice, the second answer returned"


class Request(NamedTuple):
    """What a plan may decide by."""

    method: str
    path: str


Plan = Callable[[Request], Fault | None]


def scripted(faults: Iterable[Fault | None], method: str | None = None) -> Plan:
    """The given faults, one a request (of that method, where one is named), then none."""
    left = iter(faults)
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        if method not in (None, request.method):
            return None
        with lock:
            return next(left, None)

    return plan


def seeded(seed: int, share: float, faults: Sequence[Fault] = tuple(Fault)) -> Plan:
    """One of `faults` for that share of the requests; repeatable as far as the order of the requests is."""
    chance = random.Random(seed)
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        with lock:
            return chance.choice(faults) if chance.random() < share else None

    return plan


class FaultProxy:
    """Serves at `endpoint` until the block ends; `plan` may be replaced at any time.

    target: the server's address, `http://host:port`; it may go down and come back, meanwhile connections are cut.
    silence: seconds that a client without patience of its own is kept waiting, and after which a late request is
    forwarded. injected counts the faults, `requests` everything that came in. A fault is counted before it happens.
    """

    def __init__(self, target: str, plan: Plan = lambda request: None, silence: float = 2.0) -> None:
        self.target = urlsplit(target).netloc
        self.plan = plan
        self.silence = silence
        self.injected: Counter[Fault] = Counter()
        self.requests: list[Request] = []
        self._late: list[threading.Thread] = []
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self.settle()
        self._server.shutdown()
        self._server.server_close()

    def settle(self) -> None:
        """Wait until every late request has been forwarded and answered."""
        for thread in self._late:
            thread.join()

    def chosen(self, request: Request) -> Fault | None:
        """The plan's decision, counted."""
        fault = self.plan(request)
        with self._lock:
            self.requests.append(request)
            if fault:
                self.injected[fault] += 1
        return fault

    def wait(self) -> None:
        """Be silent, or until the proxy ends."""
        self._ending.wait(self.silence)

    def later(self, forward: Callable[[], object]) -> None:
        """Forward when the client has gone."""

        def run() -> None:
            time.sleep(self.silence)  # also while the proxy ends: a late write is a late write
            forward()

        self._late.append(threading.Thread(target=run))
        self._late[-1].start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what this is for."""


class _Answer(NamedTuple):
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


_FAILED = _Answer(
    500,
    "Internal Server Error",
    [("Content-Type", "application/xml")],
    b"<Error><Code>InternalError</Code><Message>injected</Message></Error>",
)


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = self._treated(proxy.chosen(Request(self.command, self.path)), body)
            if answer is None:
                self._cut()
            else:
                self._send(answer)

        do_PUT = do_DELETE = do_HEAD = do_POST = do_GET  # noqa: N815

        def _treated(self, fault: Fault | None, body: bytes) -> _Answer | None:
            """What the client is to be answered; None to cut the connection."""
            if fault is Fault.LATE:
                proxy.later(lambda: self._forwarded(body))
            if fault in (Fault.ERROR_BEFORE, Fault.CUT_BEFORE, Fault.SILENT_BEFORE, Fault.LATE):
                answer = None
            else:
                answer = self._forwarded(body)
            if fault is Fault.TWICE:
                answer = self._forwarded(body)
            if fault in (Fault.SILENT_BEFORE, Fault.SILENT_AFTER):
                proxy.wait()
            if fault is Fault.CUT_WITHIN and answer:
                self._send(answer, half=True)
            if fault in (Fault.ERROR_BEFORE, Fault.ERROR_AFTER):
                return _FAILED
            return answer if fault in (None, Fault.TWICE) else None

        def _forwarded(self, body: bytes) -> _Answer | None:
            """The server's answer; None where it does not answer."""
            connection = http.client.HTTPConnection(proxy.target, timeout=60)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in (
                        "expect",
                        "connection",
                    ):  # neither is signed; this proxy said "100 Continue" itself
                        connection.putheader(name, value)
                connection.endheaders(body or None)
                answer = connection.getresponse()
                return _Answer(answer.status, answer.reason, answer.getheaders(), answer.read())
            except (OSError, http.client.HTTPException):
                return None
            finally:
                connection.close()

        def _send(self, answer: _Answer, half: bool = False) -> None:
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            if answer.status not in (204, 304):
                self.send_header(
                    "Content-Length",
                    next(
                        (value for name, value in answer.headers if name.lower() == "content-length"),
                        str(len(answer.body)),
                    ),
                )
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[: len(answer.body) // 2] if half else answer.body)

        def _cut(self) -> None:
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: injected faults are no news."""

    return Handler
