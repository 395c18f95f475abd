"""Where a PostgreSQL server is looked for, whatever the environment still holds of another one; and one that lets
everybody in, and then says nothing, or nothing else than notices.
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ptpipeline.data import database
from ptpipeline.data.sources import read_rows
from ptpipeline.errors import PtpError, ServiceUnavailable, SettingsError
from ptpipeline.task.source import Source, SqlQuery
from registry.ledger import engine
from registry.ledger.database import Database
from tests.data.declared import declared

NOTICE = b"SNOTICE\0C00000\0M" + b"x" * 1000 + b"\0\0"
QUERY = {"url_env": "REVIEWS_DB", "query": "SELECT 'a' AS text, 'b' AS label"}


def open_ledger(address: str, home: Path) -> None:
    Database(address)


def read_source(address: str, home: Path) -> None:
    os.environ["REVIEWS_DB"] = address
    read_rows(declared(source={"path": None, "format": None, "sql": QUERY}), home)


@pytest.fixture(params=[open_ledger, read_source])
def connect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    monkeypatch.setenv("REVIEWS_DB", "")  # so that it is gone afterwards
    used: Callable[[str, Path], None] = request.param
    return used


@pytest.fixture
def named() -> Iterator[tuple[int, list[bytes]]]:
    """A port of 127.0.0.1 that hangs up, and what it was told."""
    told: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as client:
                        told.append(client.recv(100))

        threading.Thread(target=hang_up, daemon=True).start()
        yield listener.getsockname()[1], told


@pytest.mark.parametrize("query", ["", "?hostaddr=127.0.0.1"])
def test_a_server_is_looked_for_where_its_address_says(
    connect: Callable[[str, Path], None],
    named: tuple[int, list[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
) -> None:
    """Else the login would go to another server, and the rows of that one would count."""
    port, told = named
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.2")
    host = "localhost" if not query else "no-such-host.invalid"
    with pytest.raises(ServiceUnavailable):
        connect(f"postgresql://ptp:hidden@{host}:{port}/ledger{query}", tmp_path)
    assert told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGSERVICE", "of-another-project"),
        ("PGSERVICEFILE", "/no/such/file"),
        ("PGSSLMODE", "off"),
        ("PGTARGETSESSIONATTRS", "master"),
    ],
)
def test_a_setting_of_another_client_that_is_none_is_no_server_that_is_away(
    connect: Callable[[str, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """It would be tried again for ten minutes."""
    monkeypatch.setenv("PGSERVICE", "any") if name == "PGSERVICEFILE" else None
    monkeypatch.setenv(name, value)
    with pytest.raises(PtpError, match=r"unset the PG\* variable") as refused:
        connect("postgresql://ptp:hidden@127.0.0.1:9/ledger", tmp_path)
    assert isinstance(refused.value, SettingsError)
    assert "hidden" not in str(refused.value)


# ---------------------------------------------------------------- a server that gives no answer


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def let_in(connection: socket.socket, said: bytes) -> None:
    """Let a client log in, and repeat `said` until it leaves."""
    with suppress(OSError), connection:
        while struct.unpack("!II", connection.recv(4096)[:8])[1] != 3 << 16:  # asks for encryption first
            connection.sendall(b"N")
        told = {"server_version": "16.0", "client_encoding": "UTF8", "standard_conforming_strings": "on"}
        settings = b"".join(message(b"S", f"{name}\0{value}\0".encode()) for name, value in told.items())
        connection.sendall(message(b"R", bytes(4)) + settings + message(b"K", bytes(8)) + message(b"Z", b"I"))
        while connection.recv(4096):
            while said:
                connection.sendall(said)


@contextmanager
def serving(said: bytes) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=let_in, args=(server.accept()[0], said), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"postgresql://me:secret@127.0.0.1:{server.getsockname()[1]}/base"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("said", [b"", message(b"N", NOTICE)], ids=["nothing", "notices"])
def test_a_source_that_gives_no_answer_is_left(said: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(database, "ANSWER_SECONDS", 0.2)
    with serving(said) as address:
        monkeypatch.setenv("ROWS", address)
        began = time.monotonic()
        with pytest.raises(ServiceUnavailable, match="sql:ROWS: the database does not answer"):
            database.identify(Source(sql=SqlQuery(url_env="ROWS", query="SELECT 1")), tmp_path)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("said", [b"", message(b"N", NOTICE)], ids=["nothing", "notices"])
def test_a_ledger_that_gives_no_answer_is_unavailable(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ANSWER_SECONDS", 0.2)
    with serving(said) as address:
        began = time.monotonic()
        with pytest.raises(ServiceUnavailable, match=r"does not answer: .*no answer within 0 s") as raised:
            Database(address)
    assert time.monotonic() - began < 5
    assert "secret" not in str(raised.value)
