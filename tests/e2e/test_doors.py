"""Every port on which the running stack listens, with every verb: only the stack's secret opens it.

The ports are found by looking at the processes, so that a new one cannot be forgotten: a port of Prefect and MLflow has
to be guarded as theirs, S3's by its signatures, and every other one by mutual TLS.
"""

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flows.local import certificate
from ptpipeline.storage import open_store
from tests.e2e.conftest import Project
from tests.e2e.ports import Port, find_ports, find_sockets

pytestmark = pytest.mark.servers

VERBS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
EVIL = "http://evil.example"
H2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # preface and empty settings
REFUSED = (401, 403)


class Case(NamedTuple):
    """Who asks: the name of the column, its headers, its user and password."""

    name: str
    headers: dict[str, str]
    auth: tuple[str, str] | None


def numbers(project: Project) -> dict[str, int]:
    return {
        name: int(httpx.URL(project.stack.settings[name]).port or 0) for name in ("prefect", "mlflow", "s3_endpoint")
    }


def other_ports(project: Project, server: str) -> list[Port]:
    """The ports of the server that are not its address."""
    known = set(numbers(project).values())
    return [port for port in find_ports(project.stack) if port.number not in known and port.server == server]


def owner(server: str) -> tuple[str, str]:
    if server == "mlflow":
        return os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
    user, _, password = os.environ["PREFECT_API_AUTH_STRING"].partition(":")
    return user, password


def test_the_stack_listens_on_loopback_alone(project: Project) -> None:
    found = find_ports(project.stack)
    assert {port.address for port in found} == {"127.0.0.1"}
    assert set(numbers(project).values()) <= {port.number for port in found}
    guarded = [*other_ports(project, "storage"), *other_ports(project, "worker")]
    assert len(found) == len(numbers(project)) + len(guarded), "a port that no test below knows"


# ---------------------------------------------------------------- Prefect and MLflow

PATHS = {
    "prefect": ("/", "/api/health", "/api/ready", "/api/admin/settings", "/api/flows/filter", "/ui-settings", "/docs"),
    "mlflow": (
        "/",
        "/health",
        "/version",
        "/api/2.0/mlflow/experiments/search",
        "/graphql",
        "/static-files/index.html",
    ),
}


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_web_server_answers_to_the_owner_alone(project: Project, server: str, verb: str) -> None:
    port = numbers(project)[server]
    address, key = f"http://127.0.0.1:{port}", owner(server)
    cases = [
        Case("no key", {}, None),
        Case("no key, own page", {"origin": address}, None),
        Case("wrong key", {}, (key[0], "wrong")),
        Case("foreign origin", {"origin": EVIL}, key),
        Case("origin of another port", {"origin": "http://127.0.0.1:1"}, key),
        Case("opaque origin", {"origin": "null"}, key),
        Case("foreign host", {"host": "evil.example"}, key),
        Case("rebound host", {"host": f"evil.example:{port}", "origin": f"http://evil.example:{port}"}, key),
    ]
    with httpx.Client(timeout=60) as client:
        for path in PATHS[server]:
            for case in cases:
                answer = client.request(verb, address + path, headers=case.headers, auth=case.auth)
                assert answer.status_code in REFUSED, (case.name, path)
                assert not [name for name in answer.headers if name.startswith("access-control")], (case.name, path)
            right = client.request(verb, address + path, auth=key)
            assert right.status_code not in REFUSED, path


@pytest.mark.parametrize(
    "path", ["/api/events/in", "/api/events/out", "/api/logs/out", "/api/work_pools/ptp/workers/connect"]
)
def test_a_websocket_of_prefect_asks_for_the_key(project: Project, path: str) -> None:
    address = project.prefect.removesuffix("/api").replace("http", "ws") + path
    with pytest.raises(InvalidStatus, match="403"):
        connect(address)
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, subprotocols=["prefect"], origin=EVIL)  # type: ignore[arg-type,list-item]
    for token in ("null", '"wrong"'):
        with connect(address, subprotocols=["prefect"]) as client:  # type: ignore[list-item]
            client.send(f'{{"type": "auth", "token": {token}}}')
            with pytest.raises(ConnectionClosed):
                client.recv(timeout=30)
    with connect(address, subprotocols=["prefect"]) as client:  # type: ignore[list-item]
        client.send(f'{{"type": "auth", "token": "{":".join(owner("prefect"))}"}}')
        assert "auth_success" in str(client.recv(timeout=30))


# ---------------------------------------------------------------- S3

# These answer without a key, with an empty body: they say that the server runs. OPTIONS is a preflight: it tells no
# page but S3's own that it may go on, and the request that follows needs the key.
OPEN = {("GET", "/healthz"), ("HEAD", "/healthz"), ("GET", "/status"), ("HEAD", "/status")}
S3_PATHS = (
    "/",
    "/ptp",
    "/ptp/doors.txt",
    "/ptp?policy",
    "/ptp?cors",
    "/?Action=ListUsers",
    "/healthz",
    "/status",
    "/metrics",
)


def signed(verb: str, url: str, secret: str) -> dict[str, str]:
    request = AWSRequest(method=verb, url=url, data=b"")
    S3SigV4Auth(Credentials(os.environ["AWS_ACCESS_KEY_ID"], secret), "s3", "us-east-1").add_auth(request)
    return dict(request.headers.items())


@pytest.mark.parametrize("verb", VERBS)
def test_s3_answers_to_the_owner_alone(project: Project, verb: str) -> None:
    address = project.stack.settings["s3_endpoint"]
    store = open_store("s3://ptp", address)
    store.create(f"doors/{verb}", b"kept")
    right = os.environ["AWS_SECRET_ACCESS_KEY"]
    for path in (*S3_PATHS, f"/ptp/doors/{verb}"):
        url = address + path
        cases = {
            "no key": {},
            "wrong key": signed(verb, url, "x" * 40),
            "foreign origin": {"origin": EVIL},
            "rebound host": {"host": f"evil.example:{numbers(project)['s3_endpoint']}", "origin": EVIL},
            "a signature for this host, sent to another": {**signed(verb, url, right), "host": "evil.example"},
        }
        for name, headers in cases.items():
            try:
                answer = httpx.request(verb, url, headers=headers, timeout=60)
            except httpx.RemoteProtocolError:
                assert (verb, headers.get("origin")) == ("OPTIONS", EVIL)  # it hangs up on a foreign preflight
                continue
            if answer.is_success:
                assert verb == "OPTIONS" or (verb, path) in OPEN, (name, path)
                assert answer.content == b"", (name, path)
            if answer.content:  # pages elsewhere may read only what says nothing but no
                assert answer.is_error or "access-control-allow-origin" not in answer.headers, (name, path)
    form = httpx.post(f"{address}/ptp", data={"key": f"doors/{verb}"}, files={"file": b"replaced"}, timeout=60)
    assert form.is_error
    assert store.read(f"doors/{verb}").body == b"kept"


def test_s3_lets_no_foreign_page_read_an_object(project: Project) -> None:
    url = f"{project.stack.settings['s3_endpoint']}/ptp/doors/page"
    open_store("s3://ptp", project.stack.settings["s3_endpoint"]).create("doors/page", b"kept")
    headers = signed("GET", url, os.environ["AWS_SECRET_ACCESS_KEY"]) | {"origin": EVIL}
    answer = httpx.get(url, headers=headers, timeout=60)
    assert "access-control-allow-origin" not in answer.headers


# ---------------------------------------------------------------- the other ports


def test_the_inner_ports_hear_no_plain_request(project: Project) -> None:
    found = other_ports(project, "storage")
    assert len(found) == 9
    for port in found:
        for verb in VERBS:
            for header in ("", f"Origin: {EVIL}\r\n", "Authorization: Basic cHRwOnB0cA==\r\n"):
                request = f"{verb} / HTTP/1.1\r\nHost: 127.0.0.1:{port.number}\r\n{header}Connection: close\r\n\r\n"
                answer = spoken(port, request.encode())
                assert answer.startswith(b"HTTP/1.0 400") or b"HTTP/1" not in answer, (port, verb, answer)
        assert not is_http2(spoken(port, H2)), port


def test_the_inner_ports_hear_nobody_without_the_stacks_certificate(project: Project, tmp_path: Path) -> None:
    certificate.ensure(tmp_path)
    nobody, stranger = client_context(None), client_context(certificate.locate(tmp_path))
    owner_of_stack = client_context(certificate.locate(project.home))
    for port in other_ports(project, "storage"):
        for context in (nobody, stranger):
            assert spoken(port, H2, context.wrap_socket) == b"", port
        assert is_http2(spoken(port, H2, owner_of_stack.wrap_socket)), port


def test_the_worker_hears_nobody_without_the_token_of_a_run(project: Project) -> None:
    """Prefect's runner listens for its own runs: each gets a token, which serves once."""
    for port in other_ports(project, "worker"):
        for verb in VERBS:
            assert spoken(port, f"{verb} / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: {EVIL}\r\n\r\n".encode()) == b""
        assert spoken(port, b"0" * 32 + b"\n") == b""


def client_context(shown: certificate.Certificate | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if shown:
        context.load_cert_chain(shown.certificate, shown.key)
    return context


def spoken(port: Port, request: bytes, wrap: Callable[[socket.socket], socket.socket] | None = None) -> bytes:
    """What the port answers first; nothing if it closes the connection."""
    with socket.create_connection((port.address, port.number), timeout=30) as plain:
        try:
            connection = wrap(plain) if wrap else plain
            connection.sendall(request)
            return connection.recv(4096)
        except (ssl.SSLError, ConnectionError):
            return b""


def is_http2(answer: bytes) -> bool:
    """Whether it starts with a frame of settings, as an HTTP/2 server that listens sends it."""
    return len(answer) >= 9 and answer[3] == 4


# ---------------------------------------------------------------- sockets in the file system

CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path in sys.argv[1:]:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
    except PermissionError:
        continue
    sys.exit(f"{path} lets another user in")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_another_user_may_open_no_socket(project: Project) -> None:
    found = find_sockets(project.stack)
    assert len(found) >= 7
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, *map(str, found)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
