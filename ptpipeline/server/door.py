"""What every request passes before it is answered: who asks, from where, how much; and what is told of it afterwards.

A body is read whole, within bounds of size and time, before any of it is looked at. A request whose client leaves is
cancelled. One line of the log and the metrics say what came of it; neither holds a text.
"""

import asyncio
import logging
import re
import secrets
import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptpipeline.errors import PtpError, place_of
from ptpipeline.server.callers import Caller, Tokens
from ptpipeline.server.limits import SMALL, Limits
from ptpipeline.server.metrics import Metrics
from ptpipeline.server.refusals import Refusal, refuse
from ptpipeline.settings import is_own_host

OPEN = frozenset(
    {"/", "/page.js", "/page.css", "/favicon.ico", "/healthz", "/readyz", "/openapi.json"}
)  # what holds nothing of anybody
ANYONE = Caller("anyone", frozenset(), None)
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})  # another one is what a client wrote
LEFT = 499  # in log and metrics: the client left before the answer

log = logging.getLogger("ptpipeline.server")

_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")


class _Left(Exception):
    """The client has gone."""


class Ending:
    """Whether the server is about to end: it takes requests for a moment longer, and no client keeps its connection."""

    def __init__(self) -> None:
        self.begun = False


class Door:
    """Wraps an ASGI application. tokens: of those who may ask; None lets in whoever reaches a loopback address."""

    def __init__(
        self, application: ASGIApp, tokens: Tokens | None, limits: Limits, metrics: Metrics, ending: Ending
    ) -> None:
        self._application, self._tokens, self._limits = application, tokens, limits
        self._metrics, self._ending = metrics, ending
        self._large = 0  # bytes of bodies under way behind their first SMALL

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":  # answered as GET is; uvicorn keeps its own scope, and leaves the body out
            scope = {**scope, "method": "GET"}
        exchange = _Exchange(scope, send, self._ending)
        try:
            caller = self._admit(scope)
            body = await self._read_body(Headers(scope=scope), receive, exchange)
            scope["state"] = scope.get("state", {}) | {"caller": caller, "id": exchange.id}
            await self._answer(scope, body, receive, exchange)
        except (Refusal, PtpError) as error:
            refusal = error if isinstance(error, Refusal) else refuse(error, exchange.id)
            await exchange.refuse(refusal)
        except _Left:
            exchange.status = exchange.status or LEFT
        except Exception as error:  # noqa: BLE001 - its message may hold a text: nobody but us may print it
            log.error("%s: %s", exchange.id, place_of(error))
            await exchange.refuse(Refusal(500, f"request {exchange.id} failed; the server's log says where", "failed"))
        finally:
            self._large -= exchange.large
            self._tell(scope, method if method in METHODS else "other", exchange)

    def _admit(self, scope: Scope) -> Caller:
        """Return who asks; raise Refusal if they may not."""
        headers, path = Headers(scope=scope), scope["path"]
        _check_length(headers)
        if self._tokens is None:
            _check_own(headers)
        if scope["method"] == "POST" and not _is_json(headers.get("content-type", "")):
            raise Refusal(415, "expected JSON: send the header `Content-Type: application/json`", "not_json")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refusal(415, "expected JSON as it is: send it without the header Content-Encoding", "not_json")
        if path in OPEN or self._tokens is None:
            return ANYONE
        scheme, _, given = headers.get("authorization", "").partition(" ")
        caller = self._tokens.find(given.strip()) if scheme.lower() == "bearer" and given else None
        if caller is None:
            sentence = (
                "no token that this server knows: send `Authorization: Bearer TOKEN`; `ptp token NAME` makes a token"
            )
            refusal = Refusal(401, sentence, "invalid_api_key")
            refusal.headers = {"WWW-Authenticate": "Bearer"}
            raise refusal
        return caller

    async def _read_body(self, headers: Headers, receive: Receive, exchange: "_Exchange") -> bytes:
        most, body = self._limits.body_bytes, bytearray()
        too_large = Refusal(413, f"the body has more than {most} bytes: send fewer texts at once", "too_large")
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and int(stated[:20]) > most:
            raise too_large
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _Left
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    self._make_room(len(body) - SMALL, exchange)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Refusal(
                408, f"the body did not come within {self._limits.body_seconds:g} s: send it again", "slow_client"
            ) from None

    def _make_room(self, large: int, exchange: "_Exchange") -> None:
        """Note how large a body is behind its first SMALL; raise Refusal if all are more than the server holds."""
        more = max(large, 0) - exchange.large
        if more > 0 and self._large + more > self._limits.large_bytes:
            sentence = "too many large bodies are under way: send fewer texts at once, or the same in a second"
            raise Refusal(429, sentence, "overloaded", 1.0)
        self._large += more
        exchange.large += more

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, exchange: "_Exchange") -> None:
        """Run the application; cancel it if the client leaves before the answer is complete."""
        answering = asyncio.ensure_future(self._application(scope, _give(body), exchange.send))
        leaving = asyncio.ensure_future(_wait_for_leave(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done() or exchange.complete:
                await answering
            else:
                raise _Left
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    def _tell(self, scope: Scope, method: str, exchange: "_Exchange") -> None:
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.perf_counter() - exchange.began
        version = exchange.version or "-"
        self._metrics.count_request(route, exchange.status, seconds)
        line = "%s %s %s %s %d in %.0f ms"
        log.info(line, exchange.id, method, route, version, exchange.status, seconds * 1000)


class _Exchange:
    """One request and how far its answer has come."""

    def __init__(self, scope: Scope, send: Send, ending: Ending) -> None:
        self.id = make_id()
        self.began = time.perf_counter()
        self.status, self.complete, self.version = 0, False, ""
        self.large = 0  # bytes of its body behind the first SMALL
        self._scope, self._send, self._ending = scope, send, ending

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on, with the headers of every answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [(b"x-request-id", self.id.encode()), *_HEADERS]
            if self._ending.begun:
                own.append((b"connection", b"close"))
            headers = list(message.get("headers", []))
            self.version = next((value.decode() for name, value in headers if name == b"x-ptp-version"), "")
            message = {**message, "headers": headers + own}
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a refusal, unless an answer has begun: that one just ends."""
        if not self.status:
            answer = JSONResponse(refusal.to_json(), refusal.status_code, refusal.headers)
            await answer(self._scope, _give(b""), self.send)


def make_id() -> str:
    """Return the id of a request, which nobody guesses."""
    return f"req-{secrets.token_hex(12)}"


def is_id(text: str) -> bool:
    """Return whether the text may be the id of a request, of this server or another one."""
    return re.fullmatch("req-[0-9a-f]{24}", text) is not None


def _give(body: bytes) -> Receive:
    """Return what gives the application the body, and then nothing: who leaves is cancelled."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    return receive


async def _wait_for_leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


def _check_length(headers: Headers) -> None:
    """Raise Refusal, and end the connection, if a body has two lengths: a proxy in front may have read the other one,
    and what lies between both would be a request that nobody sent (RFC 9112, section 6.3).
    """
    if "content-length" in headers and "transfer-encoding" in headers:
        refusal = Refusal(
            400, "send either Content-Length or Transfer-Encoding: the body would have two lengths", "two_lengths"
        )
        refusal.headers = {"Connection": "close"}
        raise refusal


def _check_own(headers: Headers) -> None:
    """Raise Refusal if a page of another server asks, or one that lets its own name mean this machine."""
    host = headers.get("host", "")
    found = _HOST.fullmatch(host)
    own = found is not None and is_own_host(found[1].strip("[]").lower())
    origins = headers.getlist("origin")
    if not own or len(headers.getlist("host")) != 1 or any(origin.partition("://")[2] != host for origin in origins):
        raise Refusal(
            403, "this server answers only requests to its own address that come from its own page", "foreign_origin"
        )
