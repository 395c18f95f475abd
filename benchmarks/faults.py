"""A proxy that injects the faults of networks and dying servers: silence, errors, cut connections, repeated requests.

It stands before a real server on loopback and does not interpret requests. Every header passes unchanged, also Host, so
S3's signatures (version 4) stay valid: the client signs the proxy's address, and the server verifies the Host header.

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
    """What happens to one request, and whether the server has done it when the client sees the fault."""

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
    """What a plan decides by."""

    method: str
    path: str


Plan = Callable[[Request], Fault | None]


def scripted(faults: Iterable[Fault | None], method: str | None = None) -> Plan:
    """Return a plan of these faults, one per request (of `method` only, if it is given), then none."""
    remaining = iter(faults)
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        if method not in (None, request.method):
            return None
        with lock:
            return next(remaining, None)

    return plan


def seeded(seed: int, share: float, faults: Sequence[Fault] = tuple(Fault)) -> Plan:
    """Return a plan of random faults for that share of the requests; the same if the requests' order is the same."""
    chance = random.Random(seed)
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        with lock:
            return chance.choice(faults) if chance.random() < share else None

    return plan


class FaultProxy:
    """Serves at `endpoint` until the block ends; `plan` may be replaced at any time.

    upstream: the server's address, `http://host:port`; while it is down, connections are cut.
    silence: seconds that a client without a timeout waits in vain, and after which a late request is forwarded.
    `injected` counts the faults, `requests` lists all requests. A fault is counted before it happens.
    """

    def __init__(self, upstream: str, plan: Plan = lambda request: None, silence: float = 2.0) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.plan = plan
        self.silence = silence
        self.injected: Counter[Fault] = Counter()
        self.requests: list[Request] = []
        self._late: list[threading.Thread] = []
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(self)
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

    def choose_fault(self, request: Request) -> Fault | None:
        """Return the fault that the plan chooses, and count it."""
        fault = self.plan(request)
        with self._lock:
            self.requests.append(request)
            if fault:
                self.injected[fault] += 1
        return fault

    def wait(self) -> None:
        """Wait for the time of silence, or until the proxy ends."""
        self._ending.wait(self.silence)

    def forward_later(self, forward: Callable[[], object]) -> None:
        """Call `forward` after the time of silence, when the client has gone."""

        def run() -> None:
            time.sleep(self.silence)  # in full even if the proxy ends meanwhile
            forward()

        self._late.append(threading.Thread(target=run))
        self._late[-1].start()


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
_NEVER_FORWARDED = (Fault.ERROR_BEFORE, Fault.CUT_BEFORE, Fault.SILENT_BEFORE, Fault.LATE)  # LATE: not now
_NOT_PASSED_ON = ("expect", "connection")  # not signed; the proxy itself has answered "100 Continue"
_NOT_RETURNED = ("transfer-encoding", "connection", "content-length")  # they belong to one connection


class _Handler(BaseHTTPRequestHandler):
    """Forwards one request, or does to it what the plan says."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self._inject(self.server.proxy.choose_fault(Request(self.command, self.path)), body)
        if answer is None:
            self.close_connection = True
        else:
            self._send(answer)

    do_PUT = do_DELETE = do_HEAD = do_POST = do_GET  # noqa: N815

    def _inject(self, fault: Fault | None, body: bytes) -> _Answer | None:
        """Return the client's answer under that fault; None to cut the connection."""
        if fault is Fault.LATE:
            self.server.proxy.forward_later(lambda: self._forward(body))
        answer = None if fault in _NEVER_FORWARDED else self._forward(body)
        if fault is Fault.TWICE:
            answer = self._forward(body)
        if fault in (Fault.SILENT_BEFORE, Fault.SILENT_AFTER):
            self.server.proxy.wait()
        if fault is Fault.CUT_WITHIN and answer:
            self._send(answer, half=True)
        if fault in (Fault.ERROR_BEFORE, Fault.ERROR_AFTER):
            return _FAILED
        return answer if fault in (None, Fault.TWICE) else None

    def _forward(self, body: bytes) -> _Answer | None:
        """Return the server's answer; None if it does not answer."""
        connection = http.client.HTTPConnection(self.server.proxy.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _NOT_PASSED_ON:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return _Answer(answer.status, answer.reason, answer.getheaders(), answer.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _send(self, answer: _Answer, half: bool = False) -> None:
        """Send the answer, or (`half`) its headers and half of its body."""
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers:
            if name.lower() not in _NOT_RETURNED:
                self.send_header(name, value)
        if answer.status not in (204, 304):
            lengths = [value for name, value in answer.headers if name.lower() == "content-length"]
            self.send_header("Content-Length", lengths[0] if lengths else str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if half else answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that have gone: the proxy makes them go."""
