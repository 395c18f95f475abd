"""The addresses that servers post events to: MLflow's edits start the reconcile, changed objects of a bucket start the
look at the sources of rows. Each event is checked, and many start one run.

A lost event costs only time: both also run on their schedules.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from flows.requests import ReconcileRequest, WatchSourcesRequest
from flows.server.api import call
from flows.server.trigger import trigger
from ptpipeline.errors import NotFound, PtpError, SettingsError
from ptpipeline.records.base import Record
from ptpipeline.server.port import take_port
from ptpipeline.settings import Settings
from registry.mlflow.store import MlflowStore
from registry.versions.mlflow_edit import seconds_apart

if TYPE_CHECKING:
    import uvicorn

SECRET = "PTP_WEBHOOK_SECRET"  # noqa: S105  the variable's name
TOKEN = "PTP_WEBHOOK_TOKEN"  # noqa: S105  the variable's name
SECRET_CHARACTERS = 16
FRESH_SECONDS = 300
MAX_BYTES = 1 << 20
GATHER_SECONDS = 1.0  # one edit in the UI, or one promotion by ptp, arrives as several events
START_SECONDS = 20.0  # the first of two reconciles may start this much later than the second
PATH, DATA_PATH = "/mlflow", "/data"

log = logging.getLogger("ptpipeline.webhook")


class Listener(NamedTuple):
    """One address: whose requests it takes, whether one with these headers and this body is genuine, what it wakes."""

    path: str
    sender: str
    is_genuine: Callable[[Mapping[str, str], bytes], bool]
    waker: "Waker"


def serve(settings: Settings, host: str, port: int, address: str | None = None) -> None:
    """Have MLflow post its edits here, take the notifications of object stores, and listen until interrupted.

    `address` is the URL at which MLflow reaches this process, by default http://HOST:PORT/mlflow. MLflow is asked to
    post if its secret is set, and stores are heard if their token is. Raises SettingsError if neither is, a server is
    missing or the port is taken, Terminal if MLflow may not call that address, ServiceUnavailable if MLflow does not
    answer.
    """
    if settings.prefect is None or (settings.mlflow is None and TOKEN not in os.environ):
        raise SettingsError(
            "the webhook needs an MLflow and a Prefect server: set PTP_MLFLOW and PTP_PREFECT, or run `ptp up`; "
            f"for notifications of an object store, PTP_PREFECT and {TOKEN}"
        )
    token = read_secret(TOKEN) if TOKEN in os.environ else None
    secret = read_secret(SECRET) if settings.mlflow is not None and (SECRET in os.environ or token is None) else None
    taken = take_port(host, port)  # before MLflow learns an address where another program may listen
    listeners = []
    if settings.mlflow is not None and secret is not None:
        url = address or f"http://{host}:{port}{PATH}"
        MlflowStore(settings.mlflow).set_webhook(url, secret)
        listeners.append(listen_to_mlflow(secret, Starter(settings.prefect, "reconcile", ReconcileRequest()).start))
        log.info("MLflow posts its edits to %s; Ctrl-C ends this", url)
    if token is not None:
        starter = Starter(settings.prefect, "watch-sources", WatchSourcesRequest())
        listeners.append(listen_to_stores(token, starter.start))
        log.info("notifications of object stores are taken at http://%s:%d%s; Ctrl-C ends this", host, port, DATA_PATH)
    make_server(make_application(listeners), host, port).run([taken])


def listen_to_mlflow(secret: str, start: Callable[[], None]) -> Listener:
    """Return the address that takes MLflow's edits; a person's edit is judged by the second of two reconciles."""
    again = seconds_apart() + START_SECONDS
    return Listener(
        PATH, "MLflow", lambda headers, body: is_genuine(secret, headers, body, time.time()), Waker(start, again)
    )


def listen_to_stores(token: str, start: Callable[[], None]) -> Listener:
    """Return the address that takes notifications of changed objects. Nothing is read from one but its bearer token:
    the sources themselves say what changed.
    """

    def carries_token(headers: Mapping[str, str], _: bytes) -> bool:
        return hmac.compare_digest(headers.get("authorization", "").encode(), f"Bearer {token}".encode())

    return Listener(DATA_PATH, "an object store", carries_token, Waker(start))


def make_server(application: Starlette, host: str, port: int) -> "uvicorn.Server":
    """Return the server of the application; no client stays connected for longer than one request takes."""
    import uvicorn

    from flows.server.connections import BriefConnection

    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        http=BriefConnection,
        ws="none",
        workers=1,  # else WEB_CONCURRENCY, which is another web server's, has to be a number
        headers=[("connection", "close")],
        log_level="warning",
        access_log=False,
    )
    return uvicorn.Server(config)


def read_secret(variable: str) -> str:
    """Return what a sender proves itself by, from the environment; raise SettingsError if it is missing or short."""
    secret = os.environ.get(variable)
    if not secret or len(secret) < SECRET_CHARACTERS:
        found = "not set" if secret is None else f"{len(secret)} characters" if secret else "empty"
        raise SettingsError(
            f"{variable}: {found}; expected at least {SECRET_CHARACTERS} characters; make them with "
            "`openssl rand -hex 32`"
        )
    return secret


class Waker:
    """Calls `start` soon after an event, and if `again` is given once more so many seconds later."""

    def __init__(self, start: Callable[[], None], again: float | None = None) -> None:
        self._start, self._again = start, again
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Note that something changed."""
        self._woken.set()

    async def run(self) -> None:
        """Wait for events until cancelled. A failed start is only logged: the reconcile also runs on its schedule.

        That holds for an error that nobody foresaw, too: the next event is waited for.
        """
        second_start: float | None = None
        clock = asyncio.get_running_loop().time
        while True:
            try:
                timeout = None if second_start is None else max(second_start - clock(), 0)
                await asyncio.wait_for(self._woken.wait(), timeout)
                await asyncio.sleep(GATHER_SECONDS)
                second_start = None if self._again is None else clock() + self._again
            except TimeoutError:
                second_start = None
            self._woken.clear()
            try:
                await asyncio.to_thread(self._start)
            except PtpError as error:
                log.warning("an event started nothing (%s); the flow runs on its schedule", error)
            except Exception:
                log.exception("an event started nothing, for a reason that ptpipeline does not know; please report")


class Starter:
    """Starts a flow's deployment, unless the run it started last has not begun: that run will see all changes."""

    def __init__(self, prefect: str, flow: str, request: Record) -> None:
        self._prefect, self._flow, self._request = prefect, flow, request
        self._last: str | None = None

    def start(self) -> None:
        """Start one run, or none; raises the errors of `trigger`."""
        if self._last is not None and self._is_waiting(self._last):
            return
        self._last = trigger(self._prefect, self._flow, self._request)
        log.info("an event started %s: flow run %s", self._flow, self._last)

    def _is_waiting(self, run: str) -> bool:
        try:
            return call("GET", f"{self._prefect}/flow_runs/{run}")["state_type"] in ("SCHEDULED", "PENDING")
        except NotFound:  # a person deleted it
            return False


def make_application(listeners: Sequence[Listener]) -> Starlette:
    """Return the web application: POST to a listener's path takes events, GET /health says whether all wakers run.

    Events are answered with 204, 401 if they are not genuine, 413 if they are too long; all addresses answer 503 if a
    waker has ended, and then a person has to look.
    """

    @contextlib.asynccontextmanager
    async def run_wakers(application: Starlette) -> AsyncIterator[None]:
        running = [asyncio.create_task(listener.waker.run()) for listener in listeners]
        application.state.running = running
        yield
        for task in running:
            task.cancel()

    def route(listener: Listener) -> Route:
        async def take_event(request: Request) -> Response:
            body = b""
            try:
                async for part in request.stream():
                    body += part
                    if len(body) > MAX_BYTES:
                        return Response(status_code=413)
            except ClientDisconnect:  # whoever reaches the port may leave; nobody gets this answer
                return Response(status_code=400)
            if not listener.is_genuine(request.headers, body):
                log.warning("refused a request to %s that is not of %s", listener.path, listener.sender)
                return Response(status_code=401)
            listener.waker.wake()
            return Response(status_code=503 if has_ended(request) else 204)

        return Route(listener.path, take_event, methods=["POST"])

    def has_ended(request: Request) -> bool:
        return any(task.done() for task in request.app.state.running)

    async def report_health(request: Request) -> Response:
        ended = has_ended(request)
        return PlainTextResponse("a waker ended; see the log" if ended else "OK", status_code=503 if ended else 200)

    routes = [*map(route, listeners), Route("/health", report_health)]
    application = Starlette(routes=routes, lifespan=run_wakers)
    # `/data/` would be sent to an address without TLS if something else ends TLS, and the token with it
    application.router.redirect_slashes = False
    return application


def is_genuine(secret: str, headers: Mapping[str, str], body: bytes, clock: float) -> bool:
    """Whether MLflow signed this body with `secret`, within five minutes of `clock` (seconds since 1970).

    The signature is HMAC-SHA256 over `id.timestamp.body`, in base64 behind `v1,` (mlflow/webhooks/delivery.py).
    """
    stamp, delivery = headers.get("x-mlflow-timestamp", ""), headers.get("x-mlflow-delivery-id", "")
    if not re.fullmatch(r"[0-9]{1,12}", stamp) or abs(clock - int(stamp)) > FRESH_SECONDS:
        return False
    signed = hmac.new(secret.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
    expected = "v1," + base64.b64encode(signed).decode()
    return hmac.compare_digest(headers.get("x-mlflow-signature", "").encode(), expected.encode())
