"""The client of MLflow: which login it gives, how long it waits, and what its errors tell."""

import gzip
import json
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.protobuf.json_format import ParseError
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import REQUEST_LIMIT_EXCEEDED, RESOURCE_DOES_NOT_EXIST
from requests import HTTPError, Response
from requests.exceptions import ConnectionError as Refused

from ptpipeline.errors import ServiceUnavailable, SettingsError, Terminal
from registry.mlflow.client import connect, log_files, translated_errors
from registry.mlflow.store import MlflowStore
from tests.http_server import Quiet, serve

pytestmark = pytest.mark.servers


@contextmanager
def hearing() -> Iterator[tuple[str, list[str]]]:
    """A server with no models; yields its address, and the logins that it hears."""
    logins: list[str] = []

    class Listener(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, login = self.headers.get("Authorization", "none").partition(" ")
            logins.append(b64decode(login).decode() if kind == "Basic" else kind)
            self.answer(200, b"{}")

    with serve(Listener) as address:
        yield address, logins


@pytest.mark.parametrize(
    ("variables", "user", "expected"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "ptp", "MLFLOW_TRACKING_PASSWORD": "ours"}, "", "ptp:ours"),
        ({}, "ann:hers@", "ann:hers"),
        ({"MLFLOW_TRACKING_TOKEN": "ours"}, "", "Bearer"),
        ({"MLFLOW_TRACKING_USERNAME": "ptp"}, "", "stranger:theirs"),  # half a login is none
        ({}, "", "stranger:theirs"),  # who names no login may keep it in ~/.netrc
    ],
)
def test_the_logins_in_netrc_replace_none_that_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], user: str, expected: str
) -> None:
    (tmp_path / ".netrc").write_text("default login stranger password theirs\n")
    (tmp_path / ".netrc").chmod(0o600)
    for name in ("NETRC", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, "")  # so that what the code sets is gone afterwards
        monkeypatch.delenv(name)
    for name, value in variables.items() | {("HOME", str(tmp_path))}:
        monkeypatch.setenv(name, value)
    with hearing() as (address, logins):
        connect(address.replace("//", f"//{user}")).search_registered_models()
    assert logins == [expected]


def test_no_password_of_an_address_is_told() -> None:
    store = MlflowStore("http://me:hidden@127.0.0.1:9")
    with pytest.raises(ServiceUnavailable, match=r"http://127\.0\.0\.1:9 does not answer") as refused:
        store.aliases("mood")
    assert "hidden" not in f"{refused.value} {store.page_url('mood', '1')}"
    assert MlflowStore("http://127.0.0.1:9/").page_url("mood", "1") == "http://127.0.0.1:9/#/models/mood/versions/1"


def test_the_limits_of_a_request_hold_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, mlflow_url: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    connect(mlflow_url)
    assert (MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), MLFLOW_HTTP_REQUEST_TIMEOUT.get()) == (0, 10)


URI = "http://me:hidden@mlflow:5000"


def answered(status: int) -> HTTPError:
    response = Response()
    response.status_code = status
    return HTTPError(f"{status} for {URI}/api", response=response)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered(500), ServiceUnavailable),
        (answered(499), Terminal),
        (answered(429), ServiceUnavailable),
        (answered(401), SettingsError),
        (answered(403), SettingsError),
        (answered(404), Terminal),
        (Refused(f"no connection to {URI}"), ServiceUnavailable),
        (Refused(), ServiceUnavailable),
        (ParseError(f"{URI} answered something else"), ServiceUnavailable),
        (MlflowException(f"{URI} is full", REQUEST_LIMIT_EXCEEDED), ServiceUnavailable),
        (MlflowException(f"{URI} does not know it", RESOURCE_DOES_NOT_EXIST), Terminal),
    ],
)
def test_a_failure_says_whether_a_repeat_may_help_and_no_password(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as raised, translated_errors(URI):
        raise error
    assert type(raised.value) is kind
    assert "MLflow at http://mlflow:5000" in str(raised.value)
    assert "hidden" not in str(raised.value)


def test_the_cause_of_a_failure_is_told_behind_a_long_address() -> None:
    with pytest.raises(ServiceUnavailable, match="too many 500 error responses") as raised, translated_errors(URI):
        raise Refused(f"{URI}/{'a' * 500}: too many 500 error responses")
    assert len(str(raised.value)) < 400


def test_a_servers_control_characters_are_written_out() -> None:
    with pytest.raises(Terminal) as raised, translated_errors(URI):
        raise MlflowException("\x1b]0;title\x07 \u202eno", RESOURCE_DOES_NOT_EXIST)
    assert str(raised.value).isprintable()


class Breaking(Quiet, BaseHTTPRequestHandler):
    """A server that hangs up in the middle of its answers."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"{}")
        self.close_connection = True


def test_half_an_answer_is_none() -> None:
    with serve(Breaking) as url, pytest.raises(ServiceUnavailable, match="does not answer"):
        MlflowStore(url).digests("mood")


def flooding(status: int, piece: bytes, pause: float) -> type[Quiet]:
    """A server whose answers have no end."""

    class Flooding(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            with suppress(OSError):  # who asked leaves in the middle
                while True:
                    self.wfile.write(piece)
                    time.sleep(pause)

    return Flooding


@pytest.mark.parametrize("status", [200, 404, 500])
def test_no_more_is_read_than_an_answer_may_have(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr("registry.mlflow.client.MAX_ANSWER", 2**20)
    with (
        serve(flooding(status, b" " * 2**16, 0.0)) as address,
        pytest.raises(ServiceUnavailable, match="1048576 bytes"),
    ):
        MlflowStore(address).models()


def test_an_answer_that_trickles_in_ends_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.mlflow.client.ANSWER_SECONDS", 0.2)
    told = pytest.raises(ServiceUnavailable, match=r"takes longer than 0\.2 s")
    with serve(flooding(200, b" ", 0.02)) as address, told:
        MlflowStore(address).models()


def test_an_answer_that_is_packed_unasked_is_not_unfolded() -> None:
    """A piece of gzip within gzip unfolds a million times, before anybody can count what comes of it."""

    class Packing(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, gzip.compress(gzip.compress(b"{}")))

        def end_headers(self) -> None:
            self.send_header("Content-Encoding", "gzip, gzip")
            super().end_headers()

    with serve(Packing) as address, pytest.raises(ServiceUnavailable, match="not in a valid JSON format"):
        MlflowStore(address).models()


def test_a_list_that_goes_round_in_a_circle_ends() -> None:
    page = b'{"registered_models": [{"name": "mood"}], "next_page_token": "again"}'
    with refusing(GET=(200, page)) as address, pytest.raises(ServiceUnavailable, match="MLflow's list does not end"):
        MlflowStore(address).models()


@contextmanager
def refusing(**answers: tuple[int, bytes]) -> Iterator[str]:
    """A server that answers each method so, and refuses this client by all others; yields its address."""

    class Refusing(Quiet, BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            refusal = 403, b'{"error_code": "PERMISSION_DENIED", "message": "not yours"}'
            self.answer(*answers.get(self.command, refusal))

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

    with serve(Refusing) as address:
        yield address


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.model("mood"),
        lambda store: store.version("mood", "1"),
        lambda store: store.digest_of_source("mood", "models:/m-1", []),
        lambda store: store._show_page(connect(store.uri), SimpleNamespace(tags={}, source="models:/m-1"), b""),
    ],
    ids=["model", "version", "source", "page"],
)
def test_a_refusal_is_not_taken_for_nothing_there(read: Callable[[MlflowStore], object]) -> None:
    """Else a server that refuses this client would look like one whose aliases somebody deleted."""
    with refusing() as address, pytest.raises(SettingsError, match="refuses this client"), translated_errors(address):
        read(MlflowStore(address))


def test_a_version_whose_logged_model_is_gone_has_no_page(caplog: pytest.LogCaptureFixture) -> None:
    gone = 404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"}'
    version = SimpleNamespace(tags={}, source="models:/m-1", name="mood", version="1")
    with refusing(GET=gone) as address:
        assert MlflowStore(address)._show_page(connect(address), version, b"") == {}  # type: ignore[arg-type]
    assert "mood: MLflow version 1 has no logged model; its page is not shown" in caplog.text


@pytest.mark.parametrize(("status", "kind"), [(503, ServiceUnavailable), (403, SettingsError)])
def test_a_server_that_takes_no_files_now_or_not_from_us_is_not_told_as_a_place_of_its_own(
    tmp_path: Path, status: int, kind: type[Exception]
) -> None:
    (tmp_path / "page").touch()
    model = f"m-{status}"  # MLflow keeps in mind where it wrote the files of a model
    info = {"model_id": model, "artifact_uri": f"mlflow-artifacts:/1/models/{model}/artifacts"}
    server = refusing(GET=(200, json.dumps({"model": {"info": info}}).encode()), PUT=(status, b"{}"))
    with server as address, pytest.raises(kind), translated_errors(address):
        log_files(connect(address), model, str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_AWS_SIGV4",
        "MLFLOW_TRACKING_INSECURE_TLS",
        "MLFLOW_TRACKING_SERVER_CERT_PATH",
        "MLFLOW_TRACKING_CLIENT_CERT_PATH",
        "MLFLOW_HTTP_POOL_MAXSIZE",
    ],
)
def test_a_variable_of_mlflow_that_its_client_cannot_use_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "true" if name.endswith("SIGV4") else "/nonexistent"
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as raised:
        connect("http://127.0.0.1:9")
    assert "/nonexistent" not in str(raised.value)
