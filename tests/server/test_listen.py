"""The address that a server listens on, TLS, and its end."""

import asyncio
import datetime
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI

from ptpipeline.errors import SettingsError
from ptpipeline.server import listen
from ptpipeline.server.door import Ending
from ptpipeline.server.listen import Address, Server
from tests.server.serving import Running, running
from tests.server.test_door import Endless

ASK = {"model": "movies", "input": "the good film"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 and its key, in PEM."""
    return make_pair(tmp_path_factory.mktemp("tls"))


def make_pair(folder: Path, begins: int = 0, days: int = 1) -> tuple[Path, Path]:
    """The same, another one each time, which holds from so many days after now on."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=begins)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption()))
    return certificate, secret


@pytest.fixture
def secured(tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(listen, "HANDSHAKE_SECONDS", 1.0)
    with running(tmp_path, address=Address("127.0.0.1", 0, *pair)) as server:
        yield server


def test_tls_is_spoken_by_certificate(secured: Running, pair: tuple[Path, Path]) -> None:
    known = ssl.create_default_context(cafile=str(pair[0]))
    assert secured.url.startswith("https://")
    assert httpx.post(f"{secured.url}/v1/classify", json=ASK, verify=known).status_code == 200
    with pytest.raises(httpx.ConnectError):  # a client that does not know the certificate
        httpx.get(f"{secured.url}/healthz")


def test_400_stalled_handshakes_keep_nobody_out(secured: Running, pair: tuple[Path, Path]) -> None:
    known = ssl.create_default_context(cafile=str(pair[0]))
    with ExitStack() as opened:
        stalled = [
            opened.enter_context(socket.create_connection(("127.0.0.1", secured.server.port))) for _ in range(400)
        ]
        assert httpx.post(f"{secured.url}/v1/classify", json=ASK, verify=known, timeout=10).status_code == 200
        for client in stalled:
            client.settimeout(10)
            assert client.recv(100) in (b"",)  # the server has cut it


def test_a_certificate_that_cannot_be_used_is_one_sentence(pair: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = pair
    _, other = make_pair(tmp_path)
    locked = tmp_path / "locked"
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    pem, password = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(secret.private_bytes(serialization.Encoding.PEM, pem, password))
    (tmp_path / "bad").write_bytes(b"\x00")
    os.mkfifo(tmp_path / "pipe")
    for given, words in (
        ((certificate, None), "TLS takes both"),
        ((None, key), "TLS takes both"),
        ((certificate, tmp_path / "none"), "cannot be used"),
        ((tmp_path / "bad", key), "cannot be used"),
        ((certificate, certificate), "cannot be used"),
        ((tmp_path, tmp_path), "cannot be used"),
        ((tmp_path / "pipe", key), "not a regular file"),
        ((certificate, other), "cannot be used .*MISMATCH"),  # of another certificate
        ((certificate, locked), "cannot be used"),
        ((certificate, Path("/proc/self/mem")), "cannot be used"),  # nothing can be read there
    ):
        with pytest.raises(SettingsError, match=words) as caught:
            Server(Address("127.0.0.1", 0, *given), Ending())
        assert "\n" not in str(caught.value)


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(SettingsError, match="choose another --port or --host"):
            Server(Address("127.0.0.1", taken.getsockname()[1]), Ending())
        with pytest.raises(SettingsError, match="choose another --port or --host"):
            Server(Address("no such host", 0), Ending())


def test_an_end_lets_a_stream_end(tmp_path: Path) -> None:
    body = {"model": "writer", "prompt": "a film", "max_tokens": 240, "stream": True}
    with running(tmp_path) as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.server.end()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        deadline = time.monotonic() + 10
        while True:
            try:
                httpx.get(f"{server.url}/healthz")
            except httpx.TransportError:
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_before_its_end_a_server_answers_and_keeps_no_connection(tmp_path: Path) -> None:
    with running(tmp_path) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/readyz").status_code == 200
        server.ending.begun = True
        answer = client.post("/v1/classify", json=ASK)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200


def test_a_second_signal_ends_the_drain(tmp_path: Path) -> None:
    with running(tmp_path, address=Address("127.0.0.1", 0, drain=3600.0)) as server:
        listener = server.server._listener
        assert listener is not None
        listener.handle_exit(signal.SIGTERM, None)
        time.sleep(0.5)
        assert httpx.post(f"{server.url}/v1/classify", json=ASK).status_code == 200
        listener.handle_exit(signal.SIGTERM, None)
        deadline = time.monotonic() + 10
        while not listener.should_exit:
            assert time.monotonic() < deadline
            try:
                httpx.get(f"{server.url}/healthz")
            except httpx.TransportError:
                break
            time.sleep(0.05)


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])  # as it is, and as nohup leaves it
def test_a_terminal_that_closes_ends_a_server_after_the_drain(before: signal.Handlers) -> None:
    server, handlers = Server(Address("127.0.0.1", 0, drain=0.3), Ending()), []

    def hang_up() -> None:
        while not server.listens:
            time.sleep(0.01)
        handlers.append(signal.getsignal(signal.SIGHUP))
        if handlers == [before]:  # ignored; by default it would end the tests too
            server.end()
        else:
            os.kill(os.getpid(), signal.SIGHUP)

    restored, hanging_up, began = (
        signal.signal(signal.SIGHUP, before),
        threading.Thread(target=hang_up),
        time.monotonic(),
    )
    try:
        hanging_up.start()
        server.run(FastAPI())
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        hanging_up.join()
        signal.signal(signal.SIGHUP, restored)
    assert (handlers == [before]) == (before == signal.SIG_IGN)
    assert before == signal.SIG_IGN or time.monotonic() - began > 0.3


def test_a_second_interrupt_cuts_what_is_under_way(tmp_path: Path) -> None:
    """The log offers it (CTRL+C to force quit); else a person would wait for a minute."""
    body = {"model": "writer", "prompt": "a film", "stream": True}
    with running(tmp_path, answers=Endless()) as server:
        listener = server.server._listener
        assert listener is not None
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            listener.handle_exit(signal.SIGINT, None)
            time.sleep(1.0)
            assert next(lines) == ""  # the first one lets it go on
            assert next(lines).startswith("data: ")
            listener.handle_exit(signal.SIGINT, None)
            began = time.monotonic()
            with pytest.raises(httpx.TransportError):
                list(lines)
            assert time.monotonic() - began < 20


class Open:
    """A connection with something under way."""

    cut = False

    def give_way(self) -> None:
        self.cut = True


def listener(drain: float = 3600.0) -> listen._Listener:
    return listen._Listener(FastAPI(), socket.socket(), None, drain, Ending())


TERM, INTERRUPT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("signals", "cut"),
    [
        ([INTERRUPT], False),
        ([INTERRUPT, INTERRUPT], True),
        ([TERM, INTERRUPT], False),  # this one ends the drain
        ([TERM, INTERRUPT, INTERRUPT], True),
        ([TERM, TERM, TERM], False),
    ],
)
def test_an_interrupt_behind_the_end_alone_cuts_what_is_under_way(signals: list[signal.Signals], cut: bool) -> None:
    async def tell() -> bool:
        one, connection = listener(), Open()
        one._loop = asyncio.get_running_loop()
        one.server_state.connections.add(connection)  # type: ignore[arg-type]
        for sig in signals:
            one.handle_exit(sig, None)
        await asyncio.sleep(0)
        return connection.cut

    assert asyncio.run(tell()) == cut


def test_an_interrupt_is_followed_by_no_drain() -> None:
    for sig, drains in ((TERM, True), (INTERRUPT, False)):
        one = listener()
        one.handle_exit(sig, None)
        assert (one._ends > time.monotonic() + 3000) == drains


def test_an_end_waits_for_an_answer_no_longer_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "END_SECONDS", 1.0)
    body = {"model": "writer", "prompt": "a film", "stream": True}
    with (
        running(tmp_path, answers=Endless()) as server,
        httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        server.server.end()
        began = time.monotonic()
        with pytest.raises(httpx.TransportError):
            list(lines)
        assert time.monotonic() - began < 20


def test_an_application_that_does_not_start_is_one_sentence() -> None:
    @asynccontextmanager
    async def broken(_: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("it does not start")
        yield

    with pytest.raises(SettingsError, match="the server did not start; the log says why"):
        Server(Address("127.0.0.1", 0), Ending()).run(FastAPI(lifespan=broken))


def test_how_many_workers_another_web_server_has_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "auto")
    with running(tmp_path) as server:
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_an_address_of_ipv6_stands_in_brackets() -> None:
    server = Server(Address("::1", 0), Ending())
    assert server.url == f"http://[::1]:{server.port}"
    server._socket.close()


def test_more_files_are_allowed_and_never_fewer() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
        most = 601 if hard == resource.RLIM_INFINITY else hard
        for wanted, allowed in ((601, 601), (550, 601), (most + 1 if most == hard else most, most)):
            listen._allow_files(wanted)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_thread_stays_behind_an_end(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with running(tmp_path) as server:
        httpx.post(f"{server.url}/v1/classify", json=ASK).raise_for_status()
    deadline = time.monotonic() + 10
    while any(thread.name in ("live", "ptp-batcher") for thread in set(threading.enumerate()) - before):
        assert time.monotonic() < deadline
        time.sleep(0.05)
