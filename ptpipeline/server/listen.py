"""The process that listens: TLS, deadlines of connections, and an end that no client notices."""

import asyncio
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import uvicorn
from fastapi import FastAPI

from ptpipeline.errors import PtpError, SettingsError
from ptpipeline.server.certificates import Certificate, open_certificate
from ptpipeline.server.connections import IDLE_SECONDS, PatientConnection
from ptpipeline.server.door import Ending
from ptpipeline.server.port import take_port

HANDSHAKE_SECONDS = 10.0
END_SECONDS = 60.0  # for answers that are under way when the server ends
BACKLOG = 1024
RENEWAL_TICKS = 100  # of 0.1 s between two looks at the files of the certificate
FILES = 8192


class Address(NamedTuple):
    """Where to listen. drain: seconds after SIGTERM in which requests are still taken, while /readyz answers 503."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    drain: float = 0.0


class Server:
    """An address that is taken, and listens once there is an application to answer with."""

    def __init__(self, address: Address, ending: Ending) -> None:
        """Take the address. Raises SettingsError if it is taken, or the certificate or key cannot be used."""
        self._certificate = open_certificate(address.certificate, address.key)
        self._socket = take_port(address.host, address.port)
        self._address, self._ending = address, ending
        self._listener: _Listener | None = None
        self._error: PtpError | None = None

    @property
    def port(self) -> int:
        """The port that it listens on, also if any free one was asked for."""
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Where clients reach it."""
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        return f"{'http' if self._certificate is None else 'https'}://{host}:{self.port}"

    @property
    def listens(self) -> bool:
        """Whether clients are answered."""
        return self._listener is not None and self._listener.started

    def run(self, application: FastAPI) -> None:
        """Answer with the application until a signal or `end` ends it; then finish what is under way.

        Raises the error that `end` was given.
        """
        _allow_files(FILES)
        drain = self._address.drain
        self._listener = listener = _Listener(application, self._socket, self._certificate, drain, self._ending)
        with _taking_hangups(listener.handle_exit):
            listener.run()
        if self._error is not None:
            raise self._error

    def end(self, error: PtpError | None = None) -> None:
        """End it from another thread, without a drain; `run` raises the error."""
        self._error = error
        if self._listener is not None:
            self._listener.handle_exit(signal.SIGINT, None)


class _Listener(uvicorn.Server):
    """uvicorn on a socket that is taken already, with a bound on TLS handshakes and a drain."""

    def __init__(
        self,
        application: FastAPI,
        bound: socket.socket,
        certificate: Certificate | None,
        drain: float,
        ending: Ending,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http=PatientConnection,
                ws="none",
                workers=1,  # else WEB_CONCURRENCY, which is another web server's, has to be a number
                lifespan="on",
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=int(END_SECONDS),
                server_header=False,
                log_config=None,
                access_log=False,
            )
        )
        self._socket, self._certificate = bound, certificate
        self._drain, self._ending, self._ends = drain, ending, float("inf")
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen: as uvicorn does it, but a stalled TLS handshake is cut."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise SettingsError("the server did not start; the log says why")

        def connect() -> asyncio.Protocol:
            return PatientConnection(self.config, self.server_state, self.lifespan.state)

        certificate = self._certificate
        context, timeout = (certificate.context, HANDSHAKE_SECONDS) if certificate else (None, None)
        self._loop = asyncio.get_running_loop()
        listener = await self._loop.create_server(
            connect, sock=self._socket, ssl=context, ssl_handshake_timeout=timeout, backlog=BACKLOG
        )
        self.servers = [listener]
        self.started = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no more requests, at once (SIGINT, or a second signal) or after the drain (any other signal). SIGINT
        behind that cuts what is under way, as uvicorn's log offers it.
        """
        again, self._ending.begun = self._ending.begun, True
        if sig == signal.SIGINT and time.monotonic() >= self._ends and self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._cut)
        self._ends = time.monotonic() + (0.0 if again or sig == signal.SIGINT else self._drain)

    def _cut(self) -> None:
        connections: list[Any] = list(self.server_state.connections)
        for one in connections:
            one.give_way()

    async def on_tick(self, counter: int) -> bool:
        """Return whether it is time to end; look now and then whether the certificate was renewed."""
        if self._certificate is not None and counter % RENEWAL_TICKS == 0:
            self._certificate.renew()
        return await super().on_tick(counter) or time.monotonic() >= self._ends


@contextmanager
def _taking_hangups(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let SIGHUP, which a terminal sends as it closes, end the server as SIGTERM does; nohup has it ignored already."""
    taken = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    if taken:
        signal.signal(signal.SIGHUP, handle)
    try:
        yield
    finally:
        if taken:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _allow_files(wanted: int) -> None:
    """Let this process open so many files and connections, if it may: most systems allow 1,024 unasked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
