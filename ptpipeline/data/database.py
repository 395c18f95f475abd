"""Rows of a query in SQLite or PostgreSQL, in one transaction that only reads, fetched batch by batch.

The only module of the library that speaks SQL. An address may hold a password, and a driver's message a row's text: no
error shows either, but the names of tables and columns that the driver misses.
"""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from ptpipeline.data.cells import describe_value, write_out, write_row, write_value
from ptpipeline.data.files import MAX_BYTES
from ptpipeline.data.table import MAX_ROWS, Column, Part, Places, Table, Wanted, locate, too_many
from ptpipeline.errors import DataError, ServiceUnavailable, SettingsError
from ptpipeline.foreign import shorten
from ptpipeline.postgresql import UNSET, connect_arguments, connect_in_time, find_wrong_setting
from ptpipeline.task.source import Source, SqlQuery

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

BATCH = 5000  # rows that are in memory beside the wanted cells
MAX_CELL = 16 * 2**20  # bytes of a value or a row in SQLite, as of a field of a csv file
MAX_VERSION_ROWS = 100  # of a version query's answer
WAIT_SECONDS, QUERY_SECONDS = 10, 600
ANSWER_SECONDS = QUERY_SECONDS + 60  # until a server counts as stopped, which ends a query itself before
OPTIONS = f"-c lock_timeout={WAIT_SECONDS}s -c statement_timeout={QUERY_SECONDS}s -c client_encoding=utf8"
_EXPECTED = "expected sqlite:////absolute/file.db or postgresql://user:password@host/database"
_ELSEWHERE = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)  # VACUUM INTO attaches, too

# What a server says while a connection begins has no code.
_NO_ENTRY = re.compile("authentication|password|pg_hba|role .* does not exist|database .* does not exist|not permitted")


def identify(source: Source, home: Path) -> Any:
    """Return the answer of the version query as text; without one, a digest of the rows in whatever order, and their
    number. Raises what `read` raises.
    """
    sql = _query(source)
    with _Database(sql) as database:
        if sql.version_query is None:
            digest = _Digest()
            with database.asking(sql.query) as answer:
                names = list(map(str, answer.keys()))
                for rows in answer.partitions(BATCH):
                    digest.add(rows)
                    if digest.count > MAX_ROWS:
                        raise too_many(database.name)
            return digest.describe(names)
        with database.asking(sql.version_query) as answer:
            rows = answer.fetchmany(MAX_VERSION_ROWS + 1)
            if not 1 <= len(rows) <= MAX_VERSION_ROWS:
                raise DataError(
                    f"{database.name}: version_query gives {len(rows) or 'no'} rows, expected 1 to {MAX_VERSION_ROWS}, "
                    "such as the newest time of a change"
                )
            return {"version": [[write_out(cell) for cell in write_row(row)] for row in rows]}


def read(source: Source, wanted: Sequence[Wanted], home: Path) -> Iterator[Part]:
    """Yield the name of the source and the wanted columns of the query's answer.

    Raises DataError if the query cannot run, writes, lacks a wanted column, or gives no rows or too many, SettingsError
    for the address and its login, ServiceUnavailable if the database does not answer.
    """
    yield _read(source, wanted, _Digest())


class Identified(NamedTuple):
    """What the key of a source covers, and the rows that it was made from."""

    content: Any
    part: Part


def identify_and_read(source: Source, wanted: Sequence[Wanted]) -> Identified:
    """Return what `identify` returns without a version query, and what `read` yields, of the same rows read once."""
    digest = _Digest()
    part = _read(source, wanted, digest)
    return Identified(digest.describe(part.table.names), part)


def _read(source: Source, wanted: Sequence[Wanted], digest: "_Digest") -> Part:
    sql = _query(source)
    with _Database(sql) as database, database.asking(sql.query) as answer:
        names = list(map(str, answer.keys()))
        at = locate(database.name, names, wanted)
        texts = {one.column: one.field for one in wanted if one.text}
        cells: dict[str, list[str | None]] = {column: [] for column in at}
        kinds: dict[str, dict[str, None]] = {column: {} for column in at}
        count = size = 0
        for rows in answer.partitions(BATCH):
            digest.add(rows)
            for column, index in at.items():
                values = [row[index] for row in rows]
                kinds[column] |= dict.fromkeys(describe_value(value) for value in values if value is not None)
                if column in texts:
                    _check_texts(database.name, column, texts[column], values, count)
                written = [write_value(value) for value in values]
                size += sum(len(cell) for cell in written if cell is not None)
                cells[column] += written
            count += len(rows)
            if count > MAX_ROWS:
                raise too_many(database.name)
            if size > MAX_BYTES:
                raise DataError(f"{database.name}: more than {MAX_BYTES} characters; give a part of it")
    if count == 0:
        raise DataError(f"{database.name}: the query gives no rows")
    # In an order of their own: the key asks for none, and rows in another order would be other data.
    order = sorted(range(count), key=lambda row: [cells[column][row] or "" for column in at])
    columns = {
        column: Column([cells[column][row] for row in order], tuple(kinds[column]) or ("text",)) for column in at
    }
    return Part(database.name, Table(names, columns, Places("row", [row + 1 for row in order])))


def _query(source: Source) -> SqlQuery:
    if source.sql is None:
        raise DataError("data.source names no query")
    return source.sql


class _Digest:
    """The sum of the rows' sha256: a server may give the same rows in another order tomorrow."""

    def __init__(self) -> None:
        self.total = self.count = 0

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Take some rows in."""
        self.total += sum(int.from_bytes(hashlib.sha256(json.dumps(write_row(row)).encode()).digest()) for row in rows)
        self.count += len(rows)

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the identity of these rows with columns of these names."""
        return {"columns": list(names), "rows": self.count, "sum": f"{self.total % 2**256:064x}"}


def _check_texts(name: str, column: str, field: str, values: Sequence[Any], before: int) -> None:
    for number, value in enumerate(values, before + 1):
        if value is not None and not isinstance(value, str | bytes):
            raise DataError(
                f"{name}: column {column!r}, which data.{field} names, holds {describe_value(value)} in row {number}; "
                "expected text: cast it in the query"
            )


# ---------------------------------------------------------------- the database


class _Database:
    """One connection whose transaction only reads; its errors name the variable that holds the address."""

    def __init__(self, sql: SqlQuery) -> None:
        self.sql, self.name = sql, f"sql:{sql.url_env}"

    def __enter__(self) -> "_Database":
        self._engine = self._open()
        try:
            with self._translating():
                self._connection: Connection = self._engine.connect()
        except BaseException:
            self._engine.dispose()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._translating():
            self._connection.close()
        self._engine.dispose()

    @contextmanager
    def asking(self, query: str) -> Iterator[Any]:
        """Give the answer of a query, which the server hands out batch by batch; nothing in the query is replaced."""
        options: dict[str, Any] = {"stream_results": True, "max_row_buffer": BATCH, "no_parameters": True}
        with self._translating():
            answer = self._connection.execution_options(**options).exec_driver_sql(query)
            with closing(answer):
                if not answer.returns_rows:
                    raise DataError(f"{self.name}: the query gives no columns; write one SELECT")
                yield answer

    def _open(self) -> "Engine":
        from sqlalchemy import create_engine, event, make_url
        from sqlalchemy.exc import ArgumentError

        address = os.environ.get(self.sql.url_env, "")
        if not address:
            raise SettingsError(
                f"data.source.sql.url_env: the environment variable {self.sql.url_env} is not set; {_EXPECTED} there"
            )
        try:
            url = make_url(address)
        except (ArgumentError, ValueError):  # it is not shown, because it may hold a password
            raise SettingsError(f"{self.sql.url_env} holds no address of a database; {_EXPECTED}") from None
        if url.get_backend_name() == "postgres":  # as libpq and many hosts write it
            url = url.set(drivername="postgresql")
        if url.get_backend_name() == "postgresql" and url.database:
            engine = create_engine(
                url.set(drivername="postgresql+psycopg"),
                isolation_level="REPEATABLE READ",
                connect_args=connect_arguments(url.host, url.query, WAIT_SECONDS, OPTIONS),
                execution_options={"postgresql_readonly": True},
            )
            event.listen(engine, "do_connect", connect_in_time(ANSWER_SECONDS))
            return engine
        if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
            return create_engine("sqlite://", creator=lambda: _open_sqlite(url))
        if url.get_backend_name() in ("postgresql", "sqlite"):
            raise SettingsError(f"{self.sql.url_env}: the address names no database; {_EXPECTED}")
        raise SettingsError(
            f"{self.sql.url_env}: databases of {shorten(url.get_backend_name(), 30)} are not read; {_EXPECTED}"
        )

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """Raise the driver's errors as ours: what a person has to change is Terminal, what may pass is Transient."""
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        try:
            yield
        except DBAPIError as error:
            raise self._translate(error.orig) from None
        except sqlite3.Error as error:
            raise self._translate(error) from None
        except SQLAlchemyError as error:
            raise DataError(
                f"{self.name}: the query cannot be read ({type(error).__name__}); write one SELECT"
            ) from None

    def _translate(self, error: Any) -> Exception:
        if isinstance(error, sqlite3.Error):
            return self._translate_sqlite(error)
        return self._translate_postgres(error)

    def _translate_postgres(self, error: Any) -> Exception:
        import psycopg

        state = getattr(error, "sqlstate", None) or ""
        if not state and (wrong := find_wrong_setting(str(error))):
            return SettingsError(f"{self.sql.url_env}: {shorten(wrong, 200)[1:-1]}; {UNSET}")
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if state.startswith("28") or state == "42501" or (not state and _NO_ENTRY.search(str(error))):
            return SettingsError(
                f"{self.name}: the database does not let it in, or read ({state or 'at login'}); check the login, the "
                f"database and its rights in {self.sql.url_env}"
            )
        if state == "25006":
            return DataError(f"{self.name}: the query writes, and only reading is allowed; write one SELECT")
        if state == "57014":
            return DataError(f"{self.name}: the query takes more than {QUERY_SECONDS} s; write a shorter one")
        if state.startswith("42") or state == "0A000":  # names of tables and columns; what no cursor takes
            fix = "; write one SELECT" if state in ("42601", "0A000") else ""
            return DataError(f"{self.name}: the query cannot run: {shorten(said, 200)}{fix}")
        if not state and isinstance(error, psycopg.ProgrammingError):  # it may quote the address
            return SettingsError(
                f"{self.sql.url_env}: the address has an option that PostgreSQL does not know; {_EXPECTED}"
            )
        if not state and isinstance(error, psycopg.DataError):
            return DataError(
                f"{self.name}: a date or time is infinite, or before year 1 or behind year 9999; write it as text in "
                "the query, such as by `::text`"
            )
        if not state or state[:2] in ("08", "40", "53", "55", "57", "58"):
            return ServiceUnavailable(
                f"{self.name}: the database does not answer ({state or type(error).__name__}); check that it runs and "
                "is not locked"
            )
        return DataError(f"{self.name}: the query fails on its rows (SQLSTATE {state}); correct the query")

    def _translate_sqlite(self, error: sqlite3.Error) -> Exception:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR):
            return ServiceUnavailable(f"{self.name}: the database does not answer ({error}); check who locks it")
        if code == sqlite3.SQLITE_INTERRUPT:
            return DataError(f"{self.name}: the query takes more than {QUERY_SECONDS} s; write a shorter one")
        if code == sqlite3.SQLITE_CANTOPEN:
            return self._miss_file()
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return DataError(f"{self.name}: the file at the address in {self.sql.url_env} is no SQLite database")
        if code in (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY):
            return DataError(f"{self.name}: the query does more than reading; write one SELECT")
        if code == sqlite3.SQLITE_TOOBIG:
            return DataError(f"{self.name}: a row or a value has more than {MAX_CELL} bytes; leave it out of the query")
        if "bindings supplied" in str(error):
            return DataError(
                f"{self.name}: the query has `?` or `:name` in the place of a value; write the value there"
            )
        return DataError(f"{self.name}: the query cannot run: {shorten(str(error), 200)}")

    def _miss_file(self) -> DataError:
        return DataError(
            f"{self.name}: there is no readable file at the address in {self.sql.url_env}; expected "
            "sqlite:////absolute/file.db"
        )


def _open_sqlite(url: "URL") -> sqlite3.Connection:
    """Open the file so that no statement can write, attach another one, or change a setting."""
    path = Path(os.path.expanduser(str(url.database))).absolute()
    if path.is_dir():  # which SQLite tells as a disk that fails
        error = sqlite3.OperationalError("a folder")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=WAIT_SECONDS, check_same_thread=False)
    connection.text_factory = lambda body: body.decode("utf-8", "surrogateescape")
    connection.set_authorizer(_authorize)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL)
    end = monotonic() + QUERY_SECONDS
    connection.set_progress_handler(lambda: monotonic() > end, 100_000)
    return connection


def _authorize(action: int, name: str | None, value: str | None, *_: str | None) -> int:
    """Deny what reaches another file or a setting; SQLAlchemy asks for one, and full-text tables for their version."""
    asks = name in ("read_uncommitted", "data_version") and value is None
    denied = action in _ELSEWHERE or (action == sqlite3.SQLITE_PRAGMA and not asks)
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK
