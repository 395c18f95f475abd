"""Where a PostgreSQL server is looked for, whatever the environment still holds of another one."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ptpipeline.data.sources import read_rows
from ptpipeline.errors import PtpError, ServiceUnavailable, SettingsError
from registry.ledger.database import Database
from tests.data.declared import declared

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
