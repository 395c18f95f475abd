"""The ledger's database, SQLite or PostgreSQL: one engine and its transactions. Opening it brings the schema up to
date.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

import stamina
from filelock import FileLock, Timeout
from sqlalchemy import (
    Connection,
    Row,
    Select,
    Table,
    inspect,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ptpipeline.errors import PreconditionFailed, ServiceUnavailable, SettingsError
from ptpipeline.postgresql import UNSET, find_wrong_setting
from registry.ledger.clock import boot_id, read_time, uptime
from registry.ledger.engine import connect_postgresql, connect_sqlite, parse_address, show_address
from registry.ledger.tables import SCHEMA, read_revision

# What PostgreSQL says of an address that stays wrong until a person changes something.
_REFUSED = re.compile(
    r'database "[^"]*" does not exist|role "[^"]*" does not exist|password authentication failed for user "[^"]*"'
    r"|no pg_hba.conf entry|fe_sendauth: no password supplied"
)
_NO_RIGHT = "42501"  # insufficient_privilege
MIGRATIONS = Path(__file__).parents[1] / "migrations"
AWAY_SECONDS = 600.0  # that ledger or store may be away before what a run does is given up

Fill = Callable[[Connection], None]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Database:
    """A database with the ledger's tables; raises ServiceUnavailable if it cannot be reached or stays locked.

    With a `schema`, the database may have no tables yet (else PreconditionFailed), and gets those of that schema, and
    what `fill` puts into them, in one transaction. `migrate`: bring its schema up to date; without, only
    `stored_schema` may be asked.
    """

    def __init__(self, url: str, schema: str | None = None, migrate: bool = True, fill: Fill | None = None) -> None:
        self.url = url
        parsed = parse_address(url)
        self.name = show_address(parsed)
        self.file = Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None
        self.boot = boot_id() if self.file else None  # what was held before it is held by nobody
        self._engine = connect_sqlite(parsed) if self.file else connect_postgresql(parsed)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        _open.add(self)
        self._schema, self._fill = schema or SCHEMA, fill
        if schema is not None:
            self._require_empty()
        if migrate:
            self._migrate()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that writes nothing."""
        with self._translating(), self._engine.begin() as connection:
            yield connection

    def ask(self, query: Select[Any]) -> list[Row[Any]]:
        """Return the rows that the query finds."""
        with self.reading() as connection:
            return list(connection.execute(query))

    def ask_one(self, query: Select[Any]) -> Row[Any] | None:
        """Return the first row that the query finds; None if it finds none."""
        with self.reading() as connection:
            return connection.execute(query).first()

    def ask_value(self, query: Select[Any]) -> Any:
        """Return the first column of the first row that the query finds; None if it finds none."""
        with self.reading() as connection:
            return connection.scalar(query)

    @contextmanager
    def reading_at_one_instant(self) -> Iterator[Connection]:
        """Open a transaction that writes nothing, and in which every statement sees the same rows."""
        engine = self._engine if self.file else self._engine.execution_options(isolation_level="REPEATABLE READ")
        with self._translating(), engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self, name: str | None = None) -> Iterator[Connection]:
        """Open a transaction, durable when the block ends; blocks of the same `name` never run at the same time.

        On SQLite every block excludes all other writers from its first statement. Inside `fenced` it begins with what
        the fences ask for.
        """
        with self._translating(), self._writer.begin() as connection:
            if name is not None:
                self.hold(connection, name)
            for database, check in _fences.get():
                if database is self:
                    check(connection)
            yield connection

    @contextmanager
    def fenced(self, check: Callable[[Connection], None]) -> Iterator[None]:
        """Let `check` begin every writing transaction of this thread inside the block: what it raises ends them."""
        token = _fences.set((*_fences.get(), (self, check)))
        try:
            yield
        finally:
            _fences.reset(token)

    def check_fences(self) -> None:
        """Raise what a fence of this thread raises now."""
        with self.writing():
            pass

    def hold(self, connection: Connection, name: str) -> None:
        """Let other writing blocks of that name wait until this transaction ends."""
        if self.file is None:
            key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})

    def clock(self, connection: Connection) -> float:
        """Return the seconds by the one clock that all users of this database share, which no client can set.

        On SQLite they count from the machine's start, on PostgreSQL from 1970. A PostgreSQL server's clock may be set,
        and a machine may start again: compare by `seconds_left`, or expect that a time may lie in the future.
        """
        if self.file:
            return uptime()
        return float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)

    def calendar(self, connection: Connection) -> float:
        """Return the seconds since 1970 by the clock of the database's machine, for what lasts for days.

        Whoever runs that machine may set it: compare by `seconds_left`.
        """
        if self.file is None:
            return self.clock(connection)
        return float(connection.scalar(text("SELECT (julianday('now') - 2440587.5) * 86400")) or 0)

    def time(self) -> datetime:
        """Return the time by the clock of the database's machine, which all that share the ledger go by."""
        with self.reading() as connection:
            return datetime.fromisoformat(read_time(connection))

    def stored_schema(self) -> str | None:
        """Return the revision of the schema that the database holds, None if it holds no ledger; change nothing."""
        if self.file and not self.file.exists():
            return None
        with self._translating():
            return self._revision()

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def disown(self) -> None:
        """Leave the connections to the process that this one was forked from: two processes that share one would read
        each other's answers.
        """
        self._engine.dispose(close=False)

    def _migrate(self) -> None:
        with self._translating():
            if self.file is None:
                if self._revision() != self._schema:
                    self._upgrade()
                return
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(OSError):  # SQLite says what is wrong; what it puts beside the file is as private as the file
                os.close(os.open(self.file, os.O_CREAT | os.O_EXCL, 0o600))
            if self._revision() == self._schema:
                return
            with FileLock(f"{self.file}.lock", timeout=60):
                if self._revision() != self._schema:
                    self._upgrade()

    def _revision(self) -> str | None:
        with self._engine.begin() as connection:
            return read_revision(connection) if inspect(connection).has_table("alembic_version") else None

    def _require_empty(self) -> None:
        if self.file is not None and not self.file.exists():
            return
        with self._translating(), self._engine.begin() as connection:
            if inspect(connection).get_table_names():
                raise PreconditionFailed(
                    f"ledger {self.name} has tables already: move it away, or set PTP_LEDGER to a new one"
                )

    def _upgrade(self) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self.writing("migrate") as connection:  # a process that waited here finds nothing left to do
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, self._schema)
            except CommandError as error:
                raise SettingsError(
                    f"PTP_LEDGER: {self.name} was written by another version of ptpipeline ({error}); install "
                    "the newer one"
                ) from None
            if self._fill:
                self._fill(connection)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        # InternalError: a standby, or a transaction that idled too long
        except (OperationalError, InterfaceError, InternalError, PoolTimeout) as error:
            self._check_rights()
            reason = " ".join(str(getattr(error, "orig", error)).split())
            if refused := _REFUSED.search(reason):
                raise SettingsError(
                    f"PTP_LEDGER: {self.name}: {refused[0]}; make role and database first (docs/deploy.md), or "
                    "correct the address"
                ) from error
            if wrong := find_wrong_setting(reason):
                raise SettingsError(f"PTP_LEDGER: {self.name}: {wrong}; {UNSET}") from error
            raise ServiceUnavailable(
                f"ledger {self.name} does not answer: {reason}; check that no other process locks it, that the disk is "
                "writable and that the server runs"
            ) from error
        except (OSError, Timeout) as error:
            self._check_rights()
            raise ServiceUnavailable(f"ledger {self.name} cannot be opened: {error}; PTP_LEDGER names it") from error
        except DatabaseError as error:
            if re.search("not a database|malformed", str(error.orig)):
                raise SettingsError(
                    f"PTP_LEDGER: {self.name} is no ledger ({error.orig}); restore it, or name another file"
                ) from error
            if "invalid connection option" in str(error.orig):
                raise SettingsError(
                    f"PTP_LEDGER: {self.name}: {error.orig} behind its `?`; leave it out, or correct its name"
                ) from error
            if getattr(error.orig, "sqlstate", None) == _NO_RIGHT:
                raise SettingsError(
                    f"PTP_LEDGER: {self.name}: {str(error.orig).splitlines()[0]}; make this role the owner of the "
                    "database (ALTER DATABASE ... OWNER TO ...)"
                ) from error
            raise

    def _check_rights(self) -> None:
        """Raise SettingsError if this user may not use the file of the ledger: that no second try changes."""
        try:
            if self.file is None or (self.file.exists() and os.access(self.file, os.R_OK | os.W_OK)):
                return
            above = next(folder for folder in self.file.parents if folder.is_dir())
            may = not self.file.exists() and os.access(above, os.W_OK | os.X_OK)
        except PermissionError:  # a folder that this user may not enter
            may = False
        if not may:
            raise SettingsError(
                f"PTP_LEDGER: {self.name}: this user may not read and write it; let its owner run this, or name a "
                "ledger of your own"
            ) from None


def outlasting(work: Callable[Parameters, Result], seconds: float = AWAY_SECONDS) -> Callable[Parameters, Result]:
    """Return work that is tried again, for so long, while the ledger or the store that it asks is away."""
    return stamina.retry(on=ServiceUnavailable, attempts=None, timeout=seconds, wait_max=10.0)(work)


def seconds_left(expires_at: float, now: float, longest: float) -> float:
    """Return how long a right lasts that ends at `expires_at`, 0 if it has ended; `now` is the database's clock.

    What would end further away than the right can last was written before the clock was set back, or before the machine
    was started again: it has ended.
    """
    left = expires_at - now
    return left if 0 < left <= longest else 0.0


def of_task(query: Select[Any], table: Table, task: str | None) -> Select[Any]:
    """Return the query limited to rows of the task, if there is one."""
    return query if task is None else query.where(table.c.task == task)


def insert(connection: Connection, table: Table) -> Any:
    """Return an INSERT that takes ON CONFLICT, in the database's own dialect."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def put(connection: Connection, table: Table, key: Mapping[str, str | int], **values: Any) -> None:
    """Insert the row of that key with those values, or update it."""
    connection.execute(
        insert(connection, table).values(**key, **values).on_conflict_do_update(index_elements=list(key), set_=values)
    )


_open: WeakSet[Database] = WeakSet()
_fences: ContextVar[tuple[tuple[Database, Callable[[Connection], None]], ...]] = ContextVar("fences", default=())


def _disown_all() -> None:
    for database in _open:
        database.disown()


os.register_at_fork(after_in_child=_disown_all)
