"""A PostgreSQL server that lets everybody in, and then says nothing, or nothing else than notices."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ptpipeline.data import database
from ptpipeline.errors import ServiceUnavailable
from ptpipeline.task.source import Source, SqlQuery
from registry.ledger import engine
from registry.ledger.database import Database

NOTICE = b"SNOTICE\0C00000\0M" + b"x" * 1000 + b"\0\0"


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
