"""The address that MLflow posts edits to: checks that each is MLflow's, and wakes the reconcile; repeated ones
coalesce.

A lost event costs time only: the reconcile runs on its schedule, too.
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

SECRET = "PTP_WEBHOOK_SECRET"  # noqa: S105  the variable's name
SECRET_CHARACTERS = 16
FRESH_SECONDS = 300
MOST_BYTES = 1 << 20
GATHER_SECONDS = 1.0  # one edit in the UI, or one promotion of ours, comes as several events
START_SECONDS = 20.0  # that a run of the first look may take longer to begin than the second's
PATH = "/mlflow"

log = logging.getLogger("ptpipeline.webhook")


def serve(settings: Settings, host: str, port: int, address: str | None = None) -> None:
    """Have MLflow post its edits here, and listen until interrupted.

    `address` is how MLflow reaches this process, by default `host` and `port`. Raises SettingsError where a server or
    the secret is not set or the port is taken, Terminal where MLflow may not call that address, ServiceUnavailable
    where it does not answer.
    """
    import uvicorn

    if settings.mlflow is None or settings.prefect is None:
        raise SettingsError(
            "the webhook needs an MLflow and a Prefect server: set PTP_MLFLOW and PTP_PREFECT, or `ptp up`"
        )
    secret, reached = webhook_secret(), address or f"http://{host}:{port}{PATH}"
    _check_free(host, port)
    MlflowStore(settings.mlflow).set_webhook(reached, secret)
    waker = Waker(Starter(settings.prefect).start, seconds_apart() + START_SECONDS)
    log.info("MLflow posts its edits to %s; Ctrl-C ends this", reached)
    uvicorn.run(application(secret, waker), host=host, port=port, log_level="warning", access_log=False)


def _check_free(host: str, port: int) -> None:
    """Before MLflow is told of an address where something else listens."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise SettingsError(
            f"webhook: cannot listen on {host} port {port} ({str(error.strerror).split(' (')[0]}); give "
            "another --port or --host"
        ) from error


def webhook_secret() -> str:
    """The secret that MLflow signs with; it comes from the environment alone. SettingsError where it is missing or
    short.
    """
    secret = os.environ.get(SECRET, "")
    if len(secret) < SECRET_CHARACTERS:
        raise SettingsError(
            f"{SECRET}: expected at least {SECRET_CHARACTERS} characters, found {len(secret)}; make one with "
            "`openssl rand -hex 32`"
        )
    return secret


class Waker:
    """Calls `start` soon after an event, and once more `again` seconds later, when a person's edit may be judged."""

    def __init__(self, start: Callable[[], None], again: float) -> None:
        self._start, self._again = start, again
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Something changed in MLflow."""
        self._woken.set()

    async def run(self) -> None:
        """Wait for events, for ever; a start that fails is logged, the schedule makes up for it."""
        second: float | None = None
        clock = asyncio.get_running_loop().time
        while True:
            try:
                await asyncio.wait_for(self._woken.wait(), None if second is None else max(second - clock(), 0))
                await asyncio.sleep(GATHER_SECONDS)
                second = clock() + self._again
            except TimeoutError:
                second = None
            self._woken.clear()
            try:
                await asyncio.to_thread(self._start)
            except PtpError as error:
                log.warning("the reconcile was not started (%s); it runs on its schedule", error)


class Starter:
    """Starts the `reconcile` deployment, unless the run that it started before has not begun: that one will see all."""

    def __init__(self, prefect: str) -> None:
        self._prefect = prefect
        self._last: str | None = None

    def start(self) -> None:
        """One run, or none; raises as `trigger` does."""
        if self._last is not None and self._is_waiting(self._last):
            return
        self._last = trigger(self._prefect, "reconcile", ReconcileRequest())
        log.info("MLflow was edited: flow run %s reconciles", self._last)

    def _is_waiting(self, run: str) -> bool:
        try:
            return call("GET", f"{self._prefect}/flow_runs/{run}")["state_type"] in ("SCHEDULED", "PENDING")
        except NotFound:  # somebody deleted it
            return False


def application(secret: str, waker: Waker) -> Starlette:
    """POST /mlflow takes events: 204, 401 for what MLflow did not just sign, 413 for what is too long. GET /health
    answers 200; 503 where the waker ended.
    """

    @contextlib.asynccontextmanager
    async def alive(listening: Starlette) -> AsyncIterator[None]:
        listening.state.running = asyncio.create_task(waker.run())
        yield
        listening.state.running.cancel()

    async def event(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                return Response(status_code=413)
        if not is_genuine(secret, request.headers, body, time.time()):
            log.warning("refused a request to %s that MLflow did not sign within the last %d s", PATH, FRESH_SECONDS)
            return Response(status_code=401)
        waker.wake()
        return Response(
            status_code=503 if request.app.state.running.done() else 204
        )  # nobody is there to be woken: a person has to look

    async def health(request: Request) -> Response:
        ended = request.app.state.running.done()
        return PlainTextResponse("the waker ended; see the log" if ended else "OK", status_code=503 if ended else 200)

    return Starlette(routes=[Route(PATH, event, methods=["POST"]), Route("/health", health)], lifespan=alive)


def is_genuine(secret: str, headers: Mapping[str, str], body: bytes, clock: float) -> bool:
    """Whether MLflow signed this body with our secret, within five minutes of `clock` (seconds since 1970).

    The signature is HMAC-SHA256 over `id.timestamp.body`, in base64 behind `v1,` (mlflow/webhooks/delivery.py).
    """
    stamp, delivery = headers.get("x-mlflow-timestamp", ""), headers.get("x-mlflow-delivery-id", "")
    if not re.fullmatch(r"[0-9]{1,12}", stamp) or abs(clock - int(stamp)) > FRESH_SECONDS:
        return False
    signed = hmac.new(secret.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
    expected = "v1," + base64.b64encode(signed).decode()
    return hmac.compare_digest(headers.get("x-mlflow-signature", "").encode(), expected.encode())
