"""What each new ledger of a test would do anew, done once in a process: its tables.

Alembic takes 45 ms to make the tables of a SQLite file. From then on an empty file gets the
statements that made the first one, in the transaction that asked for them.
"""

from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import inspect

migrate = command.upgrade  # as it is; tests/registry/migrations asks no other
_statements: dict[str, list[str]] = {}  # by revision


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
