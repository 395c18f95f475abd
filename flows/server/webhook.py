"""The address that MLflow posts edits to: checks MLflow's signature and starts the reconcile, once for many events.

A lost event costs only time: the reconcile also runs on its schedule.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from flows.requests import ReconcileRequest
from flows.server.api import call
from flows.server.trigger import trigger
from ptpipeline.errors import NotFound, PtpError, SettingsError
from ptpipeline.settings import Settings
from registry.mlflow.store import MlflowStore
from registry.versions.mlflow_edit import seconds_apart

if TYPE_CHECKING:
    import uvicorn

SECRET = "PTP_WEBHOOK_SECRET"  # noqa: S105  the variable's name
SECRET_CHARACTERS = 16
FRESH_SECONDS = 300
MAX_BYTES = 1 << 20
GATHER_SECONDS = 1.0  # one edit in the UI, or one promotion by ptp, arrives as several events
START_SECONDS = 20.0  # the first of two reconciles may start this much later than the second
PATH = "/mlflow"

log = logging.getLogger("ptpipeline.webhook")


def serve(settings: Settings, host: str, port: int, address: str | None = None) -> None:
    """Have MLflow post its edits here, and listen until interrupted.

    `address` is the URL at which MLflow reaches this process, by default http://HOST:PORT/mlflow. Raises SettingsError
    if a server or the secret is not set or the port is taken, Terminal if MLflow may not call that address,
    ServiceUnavailable if MLflow does not answer.
    """
    if settings.mlflow is None or settings.prefect is None:
        raise SettingsError(
            "the webhook needs an MLflow and a Prefect server: set PTP_MLFLOW and PTP_PREFECT, or run `ptp up`"
        )
    secret, url = read_secret(), address or f"http://{host}:{port}{PATH}"
    _check_port(host, port)
    MlflowStore(settings.mlflow).set_webhook(url, secret)
    waker = Waker(Starter(settings.prefect).start, seconds_apart() + START_SECONDS)
    log.info("MLflow posts its edits to %s; Ctrl-C ends this", url)
    make_server(make_application(secret, waker), host, port).run()


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
        headers=[("connection", "close")],
        log_level="warning",
        access_log=False,
    )
    return uvicorn.Server(config)


def _check_port(host: str, port: int) -> None:
    """Raise SettingsError if the port is taken, before MLflow learns an address where another program listens."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise SettingsError(
            f"webhook: cannot listen on {host} port {port} ({str(error.strerror).split(' (')[0]}); choose "
            "another --port or --host"
        ) from error


def read_secret() -> str:
    """Return the secret that MLflow signs with, from the environment; raise SettingsError if it is missing or short."""
    secret = os.environ.get(SECRET, "")
    if len(secret) < SECRET_CHARACTERS:
        raise SettingsError(
            f"{SECRET}: expected at least {SECRET_CHARACTERS} characters, found {len(secret)}; make one with "
            "`openssl rand -hex 32`"
        )
    return secret


class Waker:
    """Calls `start` soon after an event, and once more `again` seconds later, when a person's edit can be judged."""

    def __init__(self, start: Callable[[], None], again: float) -> None:
        self._start, self._again = start, again
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Note that something changed in MLflow."""
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
                second_start = clock() + self._again
            except TimeoutError:
                second_start = None
            self._woken.clear()
            try:
                await asyncio.to_thread(self._start)
            except PtpError as error:
                log.warning("the reconcile was not started (%s); it runs on its schedule", error)
            except Exception:
                log.exception(
                    "the reconcile was not started, for a reason that ptpipeline does not know; please report"
                )


class Starter:
    """Starts the `reconcile` deployment, unless the run it started last has not begun: that run will see all edits."""

    def __init__(self, prefect: str) -> None:
        self._prefect = prefect
        self._last: str | None = None

    def start(self) -> None:
        """Start one run, or none; raises the errors of `trigger`."""
        if self._last is not None and self._is_waiting(self._last):
            return
        self._last = trigger(self._prefect, "reconcile", ReconcileRequest())
        log.info("MLflow was edited: flow run %s reconciles", self._last)

    def _is_waiting(self, run: str) -> bool:
        try:
            return call("GET", f"{self._prefect}/flow_runs/{run}")["state_type"] in ("SCHEDULED", "PENDING")
        except NotFound:  # a person deleted it
            return False


def make_application(secret: str, waker: Waker) -> Starlette:
    """Return the web application: POST /mlflow takes events, GET /health says whether the waker runs.

    Events are answered with 204, 401 if MLflow did not sign them in the last five minutes, 413 if they are too long;
    both addresses answer 503 if the waker has ended, and then a person has to look.
    """

    @contextlib.asynccontextmanager
    async def run_waker(application: Starlette) -> AsyncIterator[None]:
        application.state.running = asyncio.create_task(waker.run())
        yield
        application.state.running.cancel()

    async def take_event(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BYTES:
                return Response(status_code=413)
        if not is_genuine(secret, request.headers, body, time.time()):
            log.warning("refused a request to %s that MLflow did not sign within the last %d s", PATH, FRESH_SECONDS)
            return Response(status_code=401)
        waker.wake()
        return Response(status_code=503 if request.app.state.running.done() else 204)

    async def report_health(request: Request) -> Response:
        ended = request.app.state.running.done()
        return PlainTextResponse("the waker ended; see the log" if ended else "OK", status_code=503 if ended else 200)

    routes = [Route(PATH, take_event, methods=["POST"]), Route("/health", report_health)]
    return Starlette(routes=routes, lifespan=run_waker)


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
