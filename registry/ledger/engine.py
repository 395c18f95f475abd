"""How the ledger's database is reached: its address, and the engines of SQLite and PostgreSQL."""

import sqlite3
from typing import Any

import stamina
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from ptpipeline.errors import SettingsError
from ptpipeline.postgresql import connect_arguments, connect_in_time

BUSY_SECONDS = 10
PRAGMAS = (f"busy_timeout={BUSY_SECONDS * 1000}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
TIMEOUTS = (
    f"-c lock_timeout={BUSY_SECONDS}s -c statement_timeout={3 * BUSY_SECONDS}s -c "
    f"idle_in_transaction_session_timeout={3 * BUSY_SECONDS}s"
)
ANSWER_SECONDS = 6 * BUSY_SECONDS  # until a server counts as stopped, which ends a statement itself long before


def parse_address(url: str) -> URL:
    """Return the address of a ledger; raise SettingsError if it is no file of SQLite and no database of PostgreSQL."""
    expected = (
        "expected a file, as sqlite:////absolute/ledger.db, or a database of its own, as postgresql://user@host/ledger"
    )
    try:
        path = url.removeprefix("sqlite:///")  # not parsed as a URL: a file's name may contain `?`, `#` and `%`
        parsed = make_url(url) if path == url else URL.create("sqlite", database=path)
    except (ArgumentError, ValueError):
        # the address is not shown, because it may hold a password, nor what is said of it
        raise SettingsError(f"PTP_LEDGER is no database address; {expected}") from None
    if "@" in (parsed.host or ""):  # what stands before it is a part of the password
        raise SettingsError(
            "PTP_LEDGER: its user name or password holds an `@`; write there %40 for `@`, %3A for `:` and %2F for `/`"
        )
    backend = parsed.get_backend_name()
    if backend == "postgresql" and parsed.database:
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise SettingsError(f"PTP_LEDGER: {show_address(parsed)!r} is not supported; {expected}")
    return parsed


def show_address(url: URL) -> str:
    """Return the address as messages show it: without its password, and without options, which may hold one too."""
    return url.set(query={}).render_as_string(hide_password=True)


def connect_postgresql(url: URL) -> Engine:
    """Return an engine whose statements wait for nobody for long."""
    arguments = connect_arguments(url.host, url.query, BUSY_SECONDS, TIMEOUTS)
    # after it waited for a lock, a stricter level (a server's default may be one) would show the state before the wait
    engine = create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED", connect_args=arguments)
    event.listen(engine, "do_connect", connect_in_time(ANSWER_SECONDS))
    return engine


def connect_sqlite(url: URL) -> Engine:
    """Return an engine whose transactions begin as `begin` says, and survive a power loss."""
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin late and deferred: `begin` does it
        for pragma in PRAGMAS:
            _execute(connection, f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def _is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY


@stamina.retry(on=_is_busy, attempts=None, timeout=BUSY_SECONDS, wait_initial=0.01, wait_max=0.2)
def _execute(connection: sqlite3.Connection, statement: str) -> None:
    """Execute it with retries: SQLite does not wait by itself if two processes switch a new file to WAL at once."""
    connection.execute(statement)
