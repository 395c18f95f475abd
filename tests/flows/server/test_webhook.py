"""The webhook: what MLflow signed is taken and wakes the reconcile once, all else is refused."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet
from mlflow.webhooks.delivery import _generate_hmac_signature
from starlette.testclient import TestClient

from benchmarks.fixtures.mlflow_server import running_mlflow
from benchmarks.fixtures.s3_server import free_ports, running_s3
from flows.requests import ReconcileRequest
from flows.server import connections, webhook
from flows.server.webhook import (
    Listener,
    Starter,
    Waker,
    is_genuine,
    listen_to_mlflow,
    listen_to_stores,
    make_application,
    make_server,
    read_secret,
    serve,
)
from ptpipeline.errors import ServiceUnavailable, SettingsError, Terminal
from ptpipeline.settings import Settings
from ptpipeline.storage.s3 import RequestLimits, make_client
from registry.mlflow.client import connect
from registry.mlflow.store import MlflowStore
from registry.versions.mlflow_edit import seconds_apart
from tests import http_server
from tests.http_server import Quiet, count_connections
from tests.waiting import wait_for

BOTH = (listen_to_mlflow, listen_to_stores)
SECRET, NOW = "a secret of the test", 1_800_000_000.0
BODY = b'{"entity": "model_version_alias"}'


def signed(body: bytes = BODY, secret: str = SECRET, at: float = NOW) -> dict[str, str]:
    """Headers as MLflow makes them, by its own code."""
    stamp = str(int(at))
    return {
        "x-mlflow-timestamp": stamp,
        "x-mlflow-delivery-id": "d-1",
        "x-mlflow-signature": _generate_hmac_signature(secret, "d-1", stamp, body.decode()),
    }


def test_what_mlflow_signed_is_genuine() -> None:
    assert is_genuine(SECRET, signed(), BODY, NOW)


@pytest.mark.parametrize("change", ["x-mlflow-timestamp", "x-mlflow-delivery-id", "x-mlflow-signature"])
@pytest.mark.parametrize("value", ["", "1", "é", "9" * 5000])
def test_an_altered_header_is_refused(change: str, value: str) -> None:
    assert not is_genuine(SECRET, signed() | {change: value}, BODY, NOW)


def test_another_body_or_secret_is_refused() -> None:
    assert not is_genuine(SECRET, signed(), BODY + b" ", NOW)
    assert not is_genuine(SECRET, signed(secret="another secret of the test"), BODY, NOW)
    assert not is_genuine(SECRET, {}, BODY, NOW)


@pytest.mark.parametrize(("late", "genuine"), [(-301, False), (-300, True), (300, True), (301, False)])
def test_only_fresh_events_are_genuine(late: int, genuine: bool) -> None:
    assert is_genuine(SECRET, signed(at=NOW + late), BODY, NOW) == genuine


def test_the_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_WEBHOOK_SECRET", "too short")
    with pytest.raises(SettingsError, match="9 characters; expected at least 16") as caught:
        read_secret(webhook.SECRET)
    assert "too short" not in str(caught.value)
    monkeypatch.setenv("PTP_WEBHOOK_SECRET", "x" * 16)
    assert read_secret(webhook.SECRET) == "x" * 16
    monkeypatch.setenv("PTP_WEBHOOK_SECRET", SECRET)
    assert read_secret(webhook.SECRET) == SECRET


@pytest.mark.parametrize("variable", [webhook.SECRET, webhook.TOKEN])
def test_a_secret_that_is_not_set_is_told_so(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SettingsError, match=f"^{variable}: not set; expected at least 16 characters"):
        read_secret(variable)
    monkeypatch.setenv(variable, "")
    with pytest.raises(SettingsError, match=f"^{variable}: empty; expected at least 16 characters"):
        read_secret(variable)


@pytest.mark.parametrize("token", [False, True])
@pytest.mark.parametrize("server", ["", "mlflow", "prefect"])
def test_a_webhook_without_servers_is_refused(monkeypatch: pytest.MonkeyPatch, server: str, token: bool) -> None:
    if token:
        monkeypatch.setenv(webhook.TOKEN, SECRET)
    settings = Settings(**{server: "http://127.0.0.1:9"} if server else {})  # type: ignore[arg-type]
    needed = "cannot listen" if server == "prefect" and token else "set PTP_MLFLOW and PTP_PREFECT"
    with taken_port() as port, pytest.raises(SettingsError, match=needed):
        serve(settings, "127.0.0.1", port)


@pytest.mark.parametrize(("token", "refused"), [(False, "PTP_WEBHOOK_SECRET: not set"), (True, "cannot lis")])
def test_mlflow_needs_its_secret_unless_stores_alone_are_heard(
    monkeypatch: pytest.MonkeyPatch, token: bool, refused: str
) -> None:
    if token:
        monkeypatch.setenv(webhook.TOKEN, SECRET)
    settings = Settings(mlflow="http://127.0.0.1:9", prefect="http://127.0.0.1:9/api")
    with taken_port() as port, pytest.raises(SettingsError, match=refused):
        serve(settings, "127.0.0.1", port)


def test_mlflow_learns_no_address_where_another_program_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would tell that program of every edit."""
    told: list[str] = []

    class Mlflow(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            told.append(self.path)
            self.answer(500)

        do_POST = do_GET  # noqa: N815

    monkeypatch.setenv(webhook.SECRET, SECRET)
    with http_server.serve(Mlflow) as url, taken_port() as port:
        settings = Settings(mlflow=url, prefect="http://127.0.0.1:9/api")
        with pytest.raises(SettingsError, match="cannot listen"):
            serve(settings, "127.0.0.1", port)
    assert told == []


def test_an_edit_in_mlflow_is_looked_at_twice_and_new_data_once() -> None:
    edits, data = listen_to_mlflow(SECRET, lambda: None), listen_to_stores(SECRET, lambda: None)
    assert edits.waker._again is not None
    assert edits.waker._again > seconds_apart()  # else the second look might come too early to judge the edit
    assert data.waker._again is None


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


# ---------------------------------------------------------------- waking


def starts(wakes: list[float], again: float, seconds: float) -> int:
    """How often the reconcile was started, when events come at those times."""
    started: list[None] = []

    async def run() -> None:
        waker = Waker(lambda: started.append(None), again)
        running = asyncio.create_task(waker.run())
        began = asyncio.get_running_loop().time()
        for at in wakes:
            await asyncio.sleep(max(0.0, began + at - asyncio.get_running_loop().time()))
            waker.wake()
        await asyncio.sleep(max(0.0, began + seconds - asyncio.get_running_loop().time()))
        running.cancel()

    asyncio.run(run())
    return len(started)


def test_many_events_start_one_reconcile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "GATHER_SECONDS", 0.3)
    assert starts([0.0] * 20, again=60, seconds=1) == 1


def test_a_second_look_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "GATHER_SECONDS", 0.1)
    assert starts([0.0], again=0.3, seconds=2) == 2


def test_a_second_look_is_behind_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an edit that comes just before it would be judged too early, and looked at no more."""
    monkeypatch.setattr(webhook, "GATHER_SECONDS", 0.01)
    started: list[float] = []

    async def run() -> float:
        clock = asyncio.get_running_loop().time
        waker = Waker(lambda: started.append(clock()), 0.5)
        running = asyncio.create_task(waker.run())
        waker.wake()
        await asyncio.sleep(0.2)
        waker.wake()
        woken = clock()
        await asyncio.sleep(1.0)
        running.cancel()
        return woken

    woken = asyncio.run(run())
    assert started[-1] - woken >= 0.5


def test_no_event_starts_nothing() -> None:
    assert starts([], again=0.1, seconds=0.5) == 0


def test_a_failed_start_is_survived(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(webhook, "GATHER_SECONDS", 0.05)

    def fail() -> None:
        raise ServiceUnavailable("Prefect does not answer")

    async def run() -> None:
        waker = Waker(fail, 0.1)
        running = asyncio.create_task(waker.run())
        waker.wake()
        await asyncio.sleep(1)
        assert not running.done()
        running.cancel()

    asyncio.run(run())
    assert caplog.text.count("the flow runs on its schedule") == 2


def test_an_unforeseen_error_is_told_and_survived(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "GATHER_SECONDS", 0.05)

    def fail() -> None:
        raise RuntimeError("nobody foresaw this")

    async def run() -> bool:
        waker = Waker(fail, 60)
        running = asyncio.create_task(waker.run())
        for _ in range(2):
            waker.wake()
            await asyncio.sleep(0.5)
        ended = running.done()
        running.cancel()
        return ended

    assert not asyncio.run(run())
    assert caplog.text.count("RuntimeError: nobody foresaw this") == 2


@contextmanager
def a_prefect(states: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers as Prefect's API does: its address, and the ids of the runs that were created."""
    created: list[str] = []

    class Prefect(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            run = self.path.rpartition("/")[2]
            if "/deployments/" in self.path:
                self.tell(200, {"id": "deployment"})
            else:
                self.tell(200 if run in states else 404, {"state_type": states.get(run)})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            created.append(f"run-{len(created) + 1}")
            self.tell(201, {"id": created[-1]})

        def tell(self, status: int, body: object) -> None:
            self.answer(status, json.dumps(body).encode())

    with http_server.serve(Prefect) as url:
        yield f"{url}/api", created


def test_a_run_that_waits_is_not_doubled() -> None:
    states = {"run-1": "SCHEDULED"}
    with a_prefect(states) as (url, created):
        starter = Starter(url, "reconcile", ReconcileRequest())
        for _ in range(3):
            starter.start()
        states["run-1"] = "PENDING"
        starter.start()
        assert created == ["run-1"]
        states["run-1"] = "RUNNING"  # it may have read the alias before the edit
        starter.start()
        assert created == ["run-1", "run-2"]
        starter.start()  # run-2 is unknown to Prefect: somebody deleted it
        assert created == ["run-1", "run-2", "run-3"]


# ---------------------------------------------------------------- a real MLflow


@contextmanager
def listening(secret: str) -> Iterator[tuple[str, list[float]]]:
    """The application on a real port; its address, and when a flow was started."""
    started: list[float] = []
    with serving([listen(secret, lambda: started.append(time.monotonic())) for listen in BOTH]) as url:
        yield url, started


@contextmanager
def serving(listeners: list[Listener]) -> Iterator[str]:
    """The application of these listeners on a real port; its address."""
    (port,) = free_ports(1)
    server = make_server(make_application(listeners), "127.0.0.1", port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_a_forged_or_huge_event_is_refused() -> None:
    with listening(SECRET) as (url, started):
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.post(f"{url}/mlflow", content=BODY).status_code == 401
        assert (
            httpx.post(
                f"{url}/mlflow", content=BODY, headers=signed(secret="another secret", at=time.time())
            ).status_code
            == 401
        )
        assert (
            httpx.post(
                f"{url}/mlflow", content=b" " * (webhook.MAX_BYTES + 1), headers=signed(at=time.time())
            ).status_code
            == 413
        )
        assert httpx.post(f"{url}/mlflow", content=b" " * webhook.MAX_BYTES).status_code == 401
        assert httpx.post(f"{url}/mlflow", content=BODY, headers=signed(at=time.time())).status_code == 204
        time.sleep(webhook.GATHER_SECONDS + 0.5)
        assert len(started) == 1


def test_who_leaves_or_offers_another_protocol_fills_no_log(capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever reaches the port could, without a secret."""
    begun = b"POST /mlflow HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"
    offer = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with listening(SECRET) as (url, _):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address) as client:
            client.sendall(begun)
        with socket.create_connection(address) as client:
            client.sendall(offer)
            assert client.recv(12) == b"HTTP/1.1 200"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("path", ["/mlflow/", "/data/", "/health/"])
def test_no_sender_is_led_to_another_address(path: str) -> None:
    """It would be one without TLS if something else ends TLS, and the token would go there."""
    with TestClient(make_application([listen(SECRET, lambda: None) for listen in BOTH])) as client:
        assert client.post(path, follow_redirects=False).status_code == 404


def test_how_many_workers_another_web_server_has_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "auto")
    with listening(SECRET) as (url, _):
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_waker_that_ended_is_told_at_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "GATHER_SECONDS", 0.01)

    def end() -> None:
        raise asyncio.CancelledError

    headers = {"Authorization": f"Bearer {SECRET}"}
    with TestClient(make_application([listen_to_mlflow(SECRET, end), listen_to_stores(SECRET, end)])) as client:
        assert client.get("/health").status_code == 200
        assert client.post("/data", headers=headers).status_code == 204
        deadline = time.monotonic() + 15
        while client.get("/health").status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.get("/health").text == "a waker ended; see the log"
        assert client.post("/data", headers=headers).status_code == 503


def test_a_store_is_known_by_its_token() -> None:
    with listening(SECRET) as (url, started):
        for refused in ({}, {"Authorization": "Bearer another"}, {"Authorization": SECRET}, signed(at=time.time())):
            assert httpx.post(f"{url}/data", content=b"{}", headers=refused).status_code == 401
        for _ in range(3):
            taken = httpx.post(f"{url}/data", content=b"{}", headers={"Authorization": f"Bearer {SECRET}"})
            assert taken.status_code == 204
        time.sleep(webhook.GATHER_SECONDS + 0.5)
        assert len(started) == 1


@pytest.mark.parametrize(
    "start",
    [b"", b"POST /mlflow HTTP/1.1\r\nHost: x\r\n", b"POST /mlflow HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"],
    ids=["silent", "in the header", "in the body"],
)
def test_400_stalled_clients_neither_stay_nor_keep_mlflow_out(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SECONDS", 1.5)
    with listening(SECRET) as (url, _), ExitStack() as opened:
        port = httpx.URL(url).port
        stalled = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(400)]
        for client in stalled:
            with suppress(OSError):  # it has given way already
                client.sendall(start)
        assert httpx.post(f"{url}/mlflow", content=BODY, headers=signed(at=time.time())).status_code == 204
        assert count_connections(port) <= connections.LIMIT + 1
        wait_for(lambda: count_connections(port) == 0, 15)


@pytest.mark.servers
def test_an_edit_in_mlflow_wakes_the_reconcile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with running_mlflow(tmp_path) as mlflow, listening(SECRET) as (url, started):
        with pytest.raises(Terminal, match="Allowed schemes are: http, https"):
            MlflowStore(mlflow).set_webhook("ftp://127.0.0.1:9/mlflow", SECRET)
        MlflowStore(mlflow).set_webhook("http://127.0.0.1:9/mlflow", "an earlier secret")
        MlflowStore(mlflow).set_webhook(f"{url}/mlflow", SECRET)
        client = connect(mlflow)
        assert [(hook.name, hook.url) for hook in client.list_webhooks()] == [("ptpipeline", f"{url}/mlflow")]
        client.create_registered_model("mood")
        client.create_model_version("mood", "s3://x/y", await_creation_for=0)
        client.set_registered_model_alias("mood", "production", "1")
        wait_for(lambda: started, 30)


# ---------------------------------------------------------------- a real S3 server

NOTIFICATION = """\
[notification.webhook]
enabled = true
endpoint = "{url}/data"
bearer_token = "{token}"
path_prefixes = ["/buckets/rows"]
"""


@pytest.mark.servers
def test_an_object_put_into_a_bucket_wakes_the_look_at_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(SECRET) as (url, started):
        (tmp_path / "notification.toml").write_text(NOTIFICATION.format(url=url, token=SECRET))
        with running_s3(tmp_path) as server:
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            client = make_client(server.endpoint, RequestLimits(seconds=20.0, attempts=3))
            for bucket in ("rows", "others"):
                client.create_bucket(Bucket=bucket)
            time.sleep(webhook.GATHER_SECONDS + 0.5)
            started.clear()
            client.put_object(Bucket="others", Key="rows.csv", Body=b"text,label")
            time.sleep(webhook.GATHER_SECONDS + 0.5)
            assert started == []
            client.put_object(Bucket="rows", Key="rows.csv", Body=b"text,label")
            wait_for(lambda: started, 30)
