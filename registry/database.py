"""The ledger's database: one engine, its transactions, its schema brought up to date when it opens."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ptpipeline.errors import ServiceUnavailable, SettingsError
from registry.tables import SCHEMA

BUSY_SECONDS = 10
MIGRATIONS = Path(__file__).parent / "migrations"
PRAGMAS = (f"busy_timeout={BUSY_SECONDS * 1000}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")


class Database:
    """A SQLite file with the ledger's tables; raises ServiceUnavailable where it cannot be reached or stays locked."""

    def __init__(self, url: str) -> None:
        self.path = _sqlite_file(url)
        self.url = url
        self._engine = _sqlite_engine(url)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        self._migrate()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the ledger and writes nothing."""
        with self._answering(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that holds the only writer's place from its first statement; durable when the block ends."""
        with self._answering(), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def _migrate(self) -> None:
        with self._answering():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self._revision() == SCHEMA:
                return
            with FileLock(f"{self.path}.lock", timeout=60):
                if self._revision() != SCHEMA:
                    self._upgrade()

    def _revision(self) -> str | None:
        with self._engine.begin() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return revision

    def _upgrade(self) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self._writer.begin() as connection:
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise SettingsError(f"PTP_LEDGER: {self.path} was written by another version of ptpipeline ({error}); install the newer one") from None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, PoolTimeout) as error:
            reason = str(getattr(error, "orig", error))
            raise ServiceUnavailable(f"ledger {self.path} does not answer: {reason}; is another process holding it, is the disk writable?") from error
        except (OSError, Timeout) as error:
            raise ServiceUnavailable(f"ledger {self.path} cannot be opened: {error}; PTP_LEDGER names it") from error
        except DatabaseError as error:
            if re.search("not a database|malformed", str(error.orig)):
                raise SettingsError(f"PTP_LEDGER: {self.path} is no ledger ({error.orig}); restore it or name another file") from error
            raise


def _sqlite_file(url: str) -> Path:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SettingsError(f"PTP_LEDGER: {url!r} is no database address; expected sqlite:////absolute/ledger.db") from None
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise SettingsError(f"PTP_LEDGER: {parsed.render_as_string()!r} is not supported; expected a file, as sqlite:////absolute/ledger.db")
    return Path(str(parsed.database))


def _sqlite_engine(url: str) -> Engine:
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin late and deferred: `began` does it
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def began(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine
