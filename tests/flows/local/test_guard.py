"""The guard in front of a small application, over real sockets: who gets through, and how a browser signs in."""

import asyncio
import base64
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from benchmarks.fixtures.s3_server import free_ports
from flows.local import guard
from flows.local.guard import CREDENTIAL, LOGIN_PATH, login_link
from flows.local.process import is_alive, spawn, stop

OWNER = ("ptp", "a secret of the test")
BEHIND = """\
import os

async def app(scope, receive, send):
    if scope["type"] == "http":
        while scope["path"] == "/slow" and (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        kept = " kept" * ("PTP_STACK_CREDENTIAL" in os.environ)
        await send({"type": "http.response.body", "body": f"{scope['method']} {scope['path']}{kept}".encode()})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0]})
        await send({"type": "websocket.send", "text": "too early"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": "heard " + message["text"]})
"""


HURRIED = """\
import __main__ as guard
from flows.local import deadlines
deadlines.HEAD_SECONDS = 1.0
guard.FIRST_MESSAGE_SECONDS = 1.0
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A guarded server with one application behind it, in a process of its own, as in the stack."""
    yield from serve(tmp_path_factory.mktemp("guarded"), BEHIND)


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same, where a client may stall for a second only."""
    yield from serve(tmp_path_factory.mktemp("hurried"), HURRIED + BEHIND)


def serve(folder: Path, application: str) -> Iterator[str]:
    """Run the application behind the guard until the fixture ends."""
    (folder / "behind.py").write_text(application)
    (port,) = free_ports(1)
    paths = os.pathsep.join(filter(None, [str(folder), str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    # WEB_CONCURRENCY: of another web server, whose variables are the owner's
    environment = os.environ | {CREDENTIAL: ":".join(OWNER), "PYTHONPATH": paths, "WEB_CONCURRENCY": "4"}
    process = spawn([sys.executable, "-m", "flows.local.guard", "behind:app", str(port)], environment, folder / "log")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and is_alive(process):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    stop(process)


def test_a_program_with_the_credential_passes(address: str) -> None:
    answer = httpx.put(f"{address}/thing", auth=OWNER)
    assert (answer.status_code, answer.text) == (200, "PUT /thing")
    given = httpx.BasicAuth(*OWNER)._auth_header.replace("Basic", "basic")
    assert httpx.get(f"{address}/thing", headers={"authorization": given}).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["", "Basic", "Basic !", "Basic cHRwOnNlY3JldA==", "Bearer a secret of the test", "basic " + "A" * 9000],
)
def test_without_the_credential_nothing_passes(address: str, header: str) -> None:
    answer = httpx.get(f"{address}/thing", headers={"authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Link ")  # a browser asks for no password
    assert "run `ptp open`" in answer.text


def test_a_second_authorization_does_not_pass(address: str) -> None:
    right = httpx.BasicAuth(*OWNER)._auth_header
    for both in (("Basic eDp5", right), (right, "Basic eDp5")):
        assert httpx.get(address, headers=[("authorization", one) for one in both]).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:PORT"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:1"},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "https://127.0.0.1:PORT"},
        {"origin": "http://localhost:PORT"},
        {"origin": "http://127.0.0.1:1"},
    ],
)
def test_a_foreign_host_or_origin_is_refused_with_the_credential_too(address: str, headers: dict[str, str]) -> None:
    port = address.rpartition(":")[2]
    sent = {name: value.replace("PORT", port) for name, value in headers.items()}
    answer = httpx.post(address, auth=OWNER, headers=sent)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_browser_is_told_as_a_page_and_a_program_as_a_line(address: str) -> None:
    kinds = [httpx.get(address, headers={"accept": kind}).headers["content-type"] for kind in ("text/html", "*/*")]
    assert kinds == ["text/html; charset=utf-8", "text/plain; charset=utf-8"]


def test_own_pages_may_post(address: str) -> None:
    assert httpx.post(address, auth=OWNER, headers={"origin": address}).status_code == 200
    local = address.replace("127.0.0.1", "localhost")
    assert httpx.post(local, auth=OWNER, headers={"origin": local}).status_code == 200


# ---------------------------------------------------------------- a browser


def test_a_link_signs_a_browser_in_once(address: str) -> None:
    link = login_link(address, ":".join(OWNER), "/#/models/fruit")
    assert httpx.head(link).status_code == 401  # a program that only looks at a link does not use it up
    with httpx.Client() as browser:
        signed_in = browser.get(link)
        assert f"url={address}/#/models/fruit" in signed_in.text
        assert signed_in.headers["referrer-policy"] == "no-referrer"  # its address is the token
        assert signed_in.headers["cache-control"] == "no-store"
        cookie = signed_in.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "max-age=43200" in cookie  # it outlives the browser, for twelve hours
        assert browser.get(f"{address}/thing").text == "GET /thing"
        assert browser.get(link).status_code == 200  # it is signed in
        assert browser.post(address, headers={"origin": "http://evil.example"}).status_code == 403
    again = httpx.get(link)
    assert again.status_code == 403
    assert "run `ptp open` again" in again.text


@pytest.mark.parametrize("page", ["//evil.example/x", "/\\evil.example", "http://evil.example", '/"><script>'])
def test_a_link_leads_to_own_pages_only(address: str, page: str) -> None:
    text = httpx.get(login_link(address, ":".join(OWNER), page)).text
    assert f"url={address}/" in text
    assert "<script" not in text


def test_a_forged_old_or_foreign_link_signs_nobody_in(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = login_link(address, ":".join(OWNER))
    token = httpx.URL(good).params["token"]
    other = f"{address[:-1]}{(int(address[-1]) + 1) % 10}"
    session = guard._mint(":".join(OWNER), "session", 60)
    later = token.replace(token.split("_")[1], f"{time.time() + 1e6:.3f}")
    monkeypatch.setattr(guard, "LINK_SECONDS", -1.0)
    old = httpx.URL(login_link(address, ":".join(OWNER))).params["token"]
    monkeypatch.setattr(guard, "LINK_SECONDS", 60.0)
    elsewhere = httpx.URL(login_link(other, ":".join(OWNER))).params["token"]
    foreign = httpx.URL(login_link(address, "ptp:another secret")).params["token"]
    for wrong in ("", "x", "___", session, later, old, elsewhere, foreign, token[:-1]):
        answer = httpx.get(f"{address}{LOGIN_PATH}", params={"token": wrong})
        assert (answer.status_code, answer.headers.get("set-cookie")) == (403, None)
    assert httpx.get(good).status_code == 200


def test_a_link_comes_into_no_log(address: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = login_link(address, ":".join(OWNER))
    assert httpx.get(link).status_code == 200
    log = (tmp_path_factory.getbasetemp() / "guarded0" / "log").read_text()
    assert "Uvicorn running on" in log
    assert LOGIN_PATH not in log


def test_two_stacks_of_one_machine_have_cookies_of_their_own(address: str) -> None:
    """A browser sends the cookies of one port to all."""
    name = httpx.get(login_link(address, ":".join(OWNER))).headers["set-cookie"].partition("=")[0]
    assert name != guard.Guard(None, "ptp:another secret")._cookie  # type: ignore[arg-type]


def test_a_token_of_a_link_is_no_session(address: str) -> None:
    link = login_link(address, ":".join(OWNER))
    name = httpx.get(link).headers["set-cookie"].partition("=")[0]
    assert httpx.get(address, cookies={name: httpx.URL(link).params["token"]}).status_code == 401


# ---------------------------------------------------------------- websockets


def socket_to(address: str, **options: object) -> ClientConnection:
    return connect(address.replace("http", "ws") + "/out", **options)  # type: ignore[arg-type]


def test_a_websocket_is_heard_after_the_credential_alone(address: str) -> None:
    first = json.dumps({"type": "auth", "token": ":".join(OWNER)})
    with socket_to(address, subprotocols=["prefect"]) as connection:
        connection.send(first)
        assert connection.recv(timeout=10) == f"heard {first}"  # what was sent too early never arrives


@pytest.mark.parametrize("first", ["", "[", '{"type": "auth"}', '{"token": "wrong"}', '{"token": 1}', "[" * 5000])
def test_a_websocket_without_the_credential_is_closed(address: str, first: str) -> None:
    with socket_to(address, subprotocols=["prefect"]) as connection:
        connection.send(first)
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subprotocols": ["prefect"], "origin": "http://evil.example"},
        {"subprotocols": ["prefect"], "additional_headers": {"authorization": "Bearer x"}, "origin": "null"},
    ],
)
def test_a_websocket_of_nobody_or_of_a_foreign_page_is_refused(address: str, options: dict[str, object]) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        socket_to(address, **options)


def test_a_websocket_that_shows_the_credential_first_passes(address: str) -> None:
    headers = {"authorization": httpx.BasicAuth(*OWNER)._auth_header}
    with socket_to(address, additional_headers=headers) as connection:
        assert connection.recv(timeout=10) == "too early"


def test_a_websocket_that_says_nothing_is_closed(hurried: str) -> None:
    with socket_to(hurried, subprotocols=["prefect"]) as connection, pytest.raises(ConnectionClosed) as closed:
        connection.recv(timeout=20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


# ---------------------------------------------------------------- clients that stall

HEAD = b"POST /thing HTTP/1.1\r\nHost: %s\r\n"
STALLED = {
    "nothing": b"",
    "half a head": HEAD,
    "a refused body": HEAD + b"Content-Length: 1000000\r\n\r\n",
    "the next head": b"GET /thing HTTP/1.1\r\nHost: %s\r\n\r\nGET /thing HTTP/1.1\r\n",
}


@pytest.mark.parametrize("name", STALLED)
def test_a_client_that_trickles_is_cut(hurried: str, name: str) -> None:
    """One byte each .1 s, which would keep any limit from passing that counts from the last byte."""
    with socket.create_connection(place_of(hurried), timeout=20) as connection:
        connection.sendall(STALLED[name].replace(b"%s", hurried.removeprefix("http://").encode()))
        assert is_cut(connection, b"x" if name != "nothing" else b"", seconds=15)


def test_many_stalled_clients_keep_nobody_out(hurried: str) -> None:
    stalled = [socket.create_connection(place_of(hurried), timeout=20) for _ in range(400)]
    try:
        for connection in stalled:
            connection.sendall(b"GET / HTTP/1.1\r\n")
        assert httpx.get(f"{hurried}/thing", auth=OWNER, timeout=10).text == "GET /thing"
        assert all(is_cut(connection, b"", seconds=15) for connection in stalled)
    finally:
        for connection in stalled:
            connection.close()


def test_a_slow_answer_is_not_cut(hurried: str) -> None:
    """The body comes later than a stalled head would be cut: what passed the guard has no deadline."""

    def parts() -> Iterator[bytes]:
        yield b"a"
        time.sleep(2.5)
        yield b"b"

    assert httpx.put(f"{hurried}/slow", auth=OWNER, content=parts(), timeout=20).text == "PUT /slow"


def place_of(address: str) -> tuple[str, int]:
    """Return host and port of the server."""
    host, _, port = address.removeprefix("http://").partition(":")
    return host, int(port)


def is_cut(connection: socket.socket, trickle: bytes, seconds: float) -> bool:
    """Send those bytes again and again; return whether the server ends the connection within that time."""
    deadline = time.monotonic() + seconds
    connection.settimeout(0.1)
    while time.monotonic() < deadline:
        try:
            if trickle:
                connection.sendall(trickle)
            if connection.recv(4096) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


# ---------------------------------------------------------------- requests, in this process


@pytest.mark.parametrize(
    ("second", "own"), [((b"accept", b"*/*"), True), ((b"host", b"evil.example"), False), ((b"origin", b"null"), False)]
)
def test_a_host_or_origin_beside_the_right_one_makes_a_request_foreign(second: tuple[bytes, bytes], own: bool) -> None:
    """Whatever stands in front of the server may have read the other one."""
    headers = [(b"host", b"127.0.0.1:4200"), (b"origin", b"http://127.0.0.1:4200"), second]
    assert guard._is_own({"server": ("127.0.0.1", 4200), "headers": headers}) == own


@pytest.mark.parametrize(("sign", "known"), [(b"", True), (b"!", False), (b"\xe9", False)])
def test_a_credential_between_other_signs_is_none(sign: bytes, known: bool) -> None:
    encoded = base64.b64encode(":".join(OWNER).encode())
    headers = [(b"authorization", b"Basic " + encoded[:2] + sign + encoded[2:])]
    assert guard.Guard(unserved, ":".join(OWNER))._is_known({"headers": headers}) == known


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "7", '"token"', '{"token": 7}', '{"token": null}', '{"token": "\\ud800"}']
)
def test_a_first_message_of_another_form_holds_no_credential(text: str) -> None:
    first = guard._FirstMessage(":".join(OWNER), unserved, unserved)
    assert not first._holds_credential({"text": text})
    assert first._holds_credential({"text": json.dumps({"token": ":".join(OWNER)})})


def test_a_websocket_that_was_closed_is_sent_nothing_more() -> None:
    sent = list[str]()

    async def send(message: guard.Message) -> None:
        sent.append(message["type"])

    async def talk() -> None:
        first = guard._FirstMessage(":".join(OWNER), unserved, send)
        for kind in ("accept", "send", "close", "close"):
            await first.send({"type": f"websocket.{kind}"})

    asyncio.run(talk())
    assert sent == ["websocket.accept", "websocket.close"]


# ---------------------------------------------------------------- links, in this process


def follow(guarded: guard.Guard, link: str) -> int:
    """The status that the link is answered with."""
    url, sent = httpx.URL(link), list[guard.Message]()
    scope = {
        "type": "http",
        "method": "GET",
        "path": url.path,
        "query_string": url.query,
        "server": (url.host, url.port),
        "headers": [(b"host", f"{url.host}:{url.port}".encode())],
    }

    async def send(message: guard.Message) -> None:
        sent.append(message)

    async def unused(*_: object) -> guard.Message:
        raise AssertionError("it is not asked")

    asyncio.run(guarded(scope, unused, send))
    return int(sent[0]["status"])


def test_a_link_of_before_a_restart_signs_nobody_in() -> None:
    """The server does not know any more which ones were used."""
    address, credential = "http://127.0.0.1:4200", ":".join(OWNER)
    before = login_link(address, credential)
    time.sleep(0.01)
    guarded = guard.Guard(unserved, credential)
    assert follow(guarded, before) == 403
    time.sleep(0.01)
    assert follow(guarded, login_link(address, credential)) == 200


def test_each_of_two_links_works_once() -> None:
    guarded = guard.Guard(unserved, ":".join(OWNER))
    time.sleep(0.01)
    one, two = (login_link("http://127.0.0.1:4200", ":".join(OWNER)) for _ in range(2))
    assert [follow(guarded, link) for link in (one, two, one, two)] == [200, 200, 403, 403]


async def unserved(*_: object) -> None:
    raise AssertionError("nobody got through")
