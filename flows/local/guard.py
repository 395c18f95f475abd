"""The guard in front of the two web servers of the local stack: nothing passes without the stack's credential.

Loopback is no authentication: every web page in the owner's browser and every user of the machine reaches it. So each
request has to name this server as its Host and come from no other Origin. Programs send the credential by HTTP basic
authentication, as the clients of Prefect and MLflow do. A browser gets a session cookie from a link that works once
(`ptp open`). Prefect's clients authenticate some websockets by their first message; the server hears nothing before it.
Who stalls, in a request's head or before that message, is cut.

`python -m flows.local.guard MODULE:NAME PORT` serves that ASGI application, or the one that the function returns.
"""

import asyncio
import base64
import hashlib
import hmac
import html
import inspect
import os
import secrets
import sys
import time
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.local.process import HOST
from ptpipeline.errors import ArtifactError
from ptpipeline.foreign import parse_json

CREDENTIAL = "PTP_STACK_CREDENTIAL"  # the server's `user:password`, in its environment
LOGIN_PATH = "/ptp-login"
LINK_SECONDS = 300
SESSION_SECONDS = 12 * 3600
FIRST_MESSAGE_SECONDS = 20.0  # that a websocket may take to authenticate

_UNKNOWN = (
    "Not signed in: run `ptp open` in the project's folder, which signs this browser in; then open the page again."
)
_USED = "This link was used already, or is too old: run `ptp open` again."
_FOREIGN = "Refused: this server answers only requests to its own address that come from its own pages."


def login_link(address: str, credential: str, page: str = "/") -> str:
    """Return a link that signs a browser in at the server once, within five minutes, and leads to `page` (a path)."""
    token = _mint(credential, _link_purpose(address.rpartition(":")[2]), LINK_SECONDS)
    return f"{address}{LOGIN_PATH}?{urlencode({'token': token, 'to': page})}"


class Guard:
    """Wraps an ASGI application; only the lifespan passes unasked.

    Answers 403 to a foreign Host or Origin, 401 to a request without the credential; a websocket is closed.
    """

    def __init__(self, application: ASGIApp, credential: str) -> None:
        self._application = application
        self._credential = credential
        self._cookie = f"ptp-{_sign(credential, 'cookie', '')[:12]}"  # of this stack: all ports of a host share cookies
        self._used: set[str] = set()  # login links of the last five minutes
        self._started = time.time()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        elif not _is_own(scope):
            await _refuse(scope, send, 403, _FOREIGN)
        elif scope["type"] == "http" and (scope["method"], scope["path"]) == ("GET", LOGIN_PATH):
            await self._sign_in(scope, send)
        elif self._is_known(scope):
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket" and _header(scope, b"sec-websocket-protocol"):
            first = _FirstMessage(self._credential, receive, send)
            await self._application(scope, first.receive, first.send)
        else:
            await _refuse(scope, send, 401, _UNKNOWN)

    def _is_known(self, scope: Scope) -> bool:
        """Whether the request carries the credential, or the cookie of a session."""
        scheme, _, encoded = _header(scope, b"authorization").partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(encoded, validate=True)
            except ValueError:
                return False
            return hmac.compare_digest(given, self._credential.encode())
        cookies = dict(part.strip().partition("=")[::2] for part in _header(scope, b"cookie").split(";"))
        return _is_valid(self._credential, "session", cookies.get(self._cookie, ""))

    async def _sign_in(self, scope: Scope, send: Send) -> None:
        """Exchange the token of a link for a session cookie and lead to its page.

        The page is reached from this one, not by a redirect: a browser would not send a strict cookie along a redirect
        that began elsewhere.
        """
        fields = parse_qs(scope["query_string"].decode("latin-1"))
        token, page = fields.get("token", [""])[0], fields.get("to", ["/"])[0]
        purpose = _link_purpose(scope["server"][1])
        usable = token not in self._used and _is_valid(self._credential, purpose, token, self._started)
        if not usable and not self._is_known(scope):
            await _answer(send, 403, _page(_USED))
            return
        self._used = {used for used in self._used if _is_valid(self._credential, purpose, used)} | {token}
        session = _mint(self._credential, "session", SESSION_SECONDS)
        cookie = f"{self._cookie}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={SESSION_SECONDS}"
        target = html.escape(f"http://{_header(scope, b'host')}/{page.lstrip('/')}")
        head = f'<meta http-equiv="refresh" content="0;url={target}">'
        await _answer(send, 200, _page(f'Signed in. <a href="{target}">Go on</a>', head), cookie)


class _FirstMessage:
    """A websocket whose first message has to carry the credential; before it, nothing but the acceptance is sent."""

    def __init__(self, credential: str, receive: Receive, send: Send) -> None:
        self._credential, self._receive, self._send = credential, receive, send
        self._known = self._closed = False

    async def receive(self) -> Message:
        """Return the client's next message; close the connection and say so if the first lacks the credential, or does
        not come.
        """
        if self._known:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), FIRST_MESSAGE_SECONDS)
        except TimeoutError:
            return await self._close()
        if message["type"] == "websocket.receive":
            self._known = self._holds_credential(message)
            if not self._known:
                return await self._close()
        return message

    async def _close(self) -> Message:
        await self.send({"type": "websocket.close", "code": 1008, "reason": "expected the stack's credential"})
        return {"type": "websocket.disconnect", "code": 1008}

    async def send(self, message: Message) -> None:
        """Pass the application's message on, if the client may have it."""
        if not self._closed and (self._known or message["type"] in ("websocket.accept", "websocket.close")):
            self._closed = message["type"] == "websocket.close"
            await self._send(message)

    def _holds_credential(self, message: Message) -> bool:
        try:
            token = parse_json((message.get("text") or "").encode(), "the first message")["token"]
        except (ArtifactError, UnicodeEncodeError, KeyError, TypeError):
            return False
        return isinstance(token, str) and hmac.compare_digest(token.encode(), self._credential.encode())


# ---------------------------------------------------------------- requests


def _is_own(scope: Scope) -> bool:
    """Whether the request names this server as its Host, once, and comes from no page of another server."""
    port = scope["server"][1]
    hosts = _headers(scope, b"host")
    if len(hosts) != 1 or hosts[0] not in (f"{HOST}:{port}", f"localhost:{port}"):
        return False
    return all(origin == f"http://{hosts[0]}" for origin in _headers(scope, b"origin"))


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _header(scope: Scope, name: bytes) -> str:
    """Return the header's value; empty if it is missing or stands there twice."""
    values = _headers(scope, name)
    return values[0] if len(values) == 1 else ""


def _link_purpose(port: int | str) -> str:
    return f"link to {port}"


# ---------------------------------------------------------------- answers


async def _refuse(scope: Scope, send: Send, status: int, sentence: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before its acceptance: the server answers 403
    elif "text/html" in _header(scope, b"accept"):
        await _answer(send, status, _page(html.escape(sentence)))
    else:
        await _answer(send, status, sentence + "\n", media="text/plain")


async def _answer(send: Send, status: int, body: str, cookie: str | None = None, media: str = "text/html") -> None:
    headers = {"content-type": f"{media}; charset=utf-8", "cache-control": "no-store", "referrer-policy": "no-referrer"}
    if status == 401:
        headers["www-authenticate"] = 'Link realm="ptp open"'  # not Basic, or the browser would ask for a password
    if cookie:
        headers["set-cookie"] = cookie
    encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body.encode()})


def _page(body: str, head: str = "") -> str:
    style = "<style>body { font: 1rem sans-serif; margin: 4rem }</style>"
    return f"<!doctype html><title>ptp</title>{style}{head}<p>{body}</p>"


# ---------------------------------------------------------------- tokens


def _mint(credential: str, purpose: str, seconds: float) -> str:
    """Return a token for this purpose: when it was made, when it ends, a nonce, and their signature."""
    now = time.time()
    body = f"{now:.3f}_{now + seconds:.3f}_{secrets.token_hex(16)}"
    return f"{body}_{_sign(credential, purpose, body)}"


def _is_valid(credential: str, purpose: str, token: str, since: float = 0.0) -> bool:
    """Whether the token was made here for this purpose, not before `since`, and has not ended."""
    body, _, signature = token.rpartition("_")
    if not hmac.compare_digest(signature.encode(), _sign(credential, purpose, body).encode()):
        return False
    made, ends, _ = body.split("_")
    return float(made) >= since and time.time() < float(ends)


def _sign(credential: str, purpose: str, body: str) -> str:
    return hmac.new(credential.encode(), f"{purpose}_{body}".encode(), hashlib.sha256).hexdigest()


# ---------------------------------------------------------------- the process


def main() -> None:
    """Serve the application that the command line names until the process is ended."""
    import uvicorn
    from uvicorn.importer import import_from_string

    from flows.local.deadlines import DeadlineProtocol

    name, port = sys.argv[1:]
    credential = os.environ.pop(CREDENTIAL)  # the application's children need not have it
    application = import_from_string(name)
    if inspect.isfunction(application) and not inspect.iscoroutinefunction(application):
        application = application()
    # no log of requests: a login link is one
    # workers: else WEB_CONCURRENCY, which another web server's owner set, says how many
    options: dict[str, Any] = {"access_log": False, "server_header": False, "http": DeadlineProtocol, "workers": 1}
    uvicorn.run(Guard(application, credential), host=HOST, port=int(port), **options)


if __name__ == "__main__":
    main()
