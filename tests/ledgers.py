"""What each new ledger of a test would do anew, done once in a process: its tables, and its statements as text.

Alembic takes 45 ms to make the tables of a SQLite file. From then on an empty file gets the
statements that made the first one, in the transaction that asked for them. Compiling what a ledger asks is a fifth of
what the tests of the registry compute, since each ledger has an engine, and so a cache, of its own.
"""

from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import inspect
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.util import LRUCache

migrate = command.upgrade  # as it is; tests/registry/migrations asks no other
_compile: Any = ClauseElement._compile_w_cache
_statements: dict[str, list[str]] = {}  # by revision
_first: dict[type[Dialect], Dialect] = {}  # of a kind; a process meets one release of each database
_compiled: LRUCache[Any, Any] = LRUCache(2000)


def upgrade(config: Config, revision: str, *options: Any, **named: Any) -> None:
    """Bring the database of `config` to the revision; an empty SQLite file by what made the first one."""
    connection = config.attributes.get("connection")
    fresh = connection is not None and connection.dialect.name == "sqlite" and not inspect(connection).get_table_names()
    if not fresh or revision not in _statements:
        migrate(config, revision, *options, **named)
        if fresh:
            dump = connection.connection.driver_connection.iterdump()
            _statements[revision] = [line for line in dump if line not in ("BEGIN TRANSACTION;", "COMMIT;")]
        return
    for statement in _statements[revision]:
        connection.exec_driver_sql(statement)


def compile_once(statement: ClauseElement, dialect: Dialect, *, compiled_cache: Any, **options: Any) -> Any:
    """Compile a statement for the dialect, or return what was compiled for another engine of that kind."""
    if compiled_cache is not None and type(dialect) in (SQLiteDialect_pysqlite, PGDialect_psycopg):
        dialect, compiled_cache = _first.setdefault(type(dialect), dialect), _compiled
    return _compile(statement, dialect, compiled_cache=compiled_cache, **options)
