"""A ledger in one file, to be restored into SQLite or PostgreSQL: every row of every table, read at one instant.

The file is gzipped JSON lines: what it is and its schema, then each row with its table, then how many rows there are
and the hash of all lines before. It holds the secret that seals checkpoints, so its owner alone can read it.
"""

import base64
import gzip
import hashlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, MetaData, Table, func, insert, select
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, SQLAlchemyError

from ptpipeline.durable import publish
from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed
from ptpipeline.foreign import check_file, parse_json, parsing, shorten
from ptpipeline.storage.bounds import MIB
from registry.ledger.database import Database
from registry.ledger.tables import read_revision

FORMAT = "ptpipeline ledger"
MAX_LINE = 64 * MIB
MAX_FILE = 2**50  # any size, of a regular file
BATCH = 500  # rows in one INSERT
_FIX = "it was altered or is not whole; take another backup"


class Saved(NamedTuple):
    """What a backup holds: the ledger's schema, and how many rows."""

    schema: str
    rows: int


def back_up(database: Database, path: Path) -> Saved:
    """Write the whole ledger to a file, which is there whole or not at all; others may go on writing to the ledger.

    It never replaces a file, which might be the ledger itself. Raises PreconditionFailed if there is one or it cannot
    be written, ServiceUnavailable if the database does not answer.
    """
    if os.path.lexists(path):
        raise PreconditionFailed(f"{path}: there is a file of that name; name another one")
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # with mode 0600
        try:
            with os.fdopen(descriptor, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as file:
                saved = _write_rows(database, file)
            publish(Path(temporary), path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PreconditionFailed(f"{path}: cannot be written ({error.strerror}); name another file") from None
    return saved


def restore(url: str, path: Path) -> Saved:
    """Make the ledger of a backup in a database that has no tables yet, and bring it to the schema of today.

    The whole file is checked first. Raises NotFound if there is no such file, ArtifactError if it is no backup or was
    altered, PreconditionFailed if the database has tables, SettingsError if a newer ptpipeline wrote the backup.
    """
    check_file(path, MAX_FILE)
    saved = _check(path)
    Database(url, saved.schema, fill=partial(_insert_rows, path)).close()  # one killed meanwhile leaves no table
    Database(url).close()
    return saved


def _insert_rows(path: Path, connection: Connection) -> None:
    """Raises ArtifactError if a row fits no table: whoever altered the file wrote its hash again."""
    tables = _reflect(connection)
    batch: list[dict[str, Any]] = []
    name, size = "", 0

    for table, row, length in _read_rows(path):
        if table != name or len(batch) == BATCH or size + length > MAX_LINE:
            _insert_batch(path, connection, tables.get(name), batch)
            batch, size = [], 0
        name, size = table, size + length
        batch.append(row)
    _insert_batch(path, connection, tables.get(name), batch)
    if connection.dialect.name == "postgresql":
        _continue_sequences(connection, tables.values())


def _insert_batch(path: Path, connection: Connection, table: Table | None, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    try:
        if table is None:
            raise KeyError
        connection.execute(insert(table), rows)
    except (OperationalError, InternalError):
        raise  # the database is away, or full
    except (SQLAlchemyError, KeyError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, InterfaceError) and connection.dialect.name == "postgresql":
            raise  # away too; SQLite says so of a value that is none
        raise ArtifactError(f"{path}: a row fits no table of a ledger ({type(error).__name__}); {_FIX}") from None


def _write_rows(database: Database, file: gzip.GzipFile) -> Saved:
    digest, rows = hashlib.sha256(), 0

    def write(value: Any) -> None:
        line = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        digest.update(line)
        file.write(line)

    with database.reading_at_one_instant() as connection:
        schema = read_revision(connection)
        write({"format": FORMAT, "schema": schema})
        for name, table in _reflect(connection).items():
            for row in connection.execution_options(yield_per=BATCH).execute(table.select()):
                write([name, {column: _encode(value) for column, value in row._mapping.items()}])
                rows += 1
    write({"rows": rows, "sha256": digest.hexdigest()})
    return Saved(schema, rows)


def _reflect(connection: Connection) -> dict[str, Table]:
    """The ledger's tables as the database has them, each after those that it refers to."""
    metadata = MetaData()
    metadata.reflect(connection)
    return {table.name: table for table in metadata.sorted_tables if table.name != "alembic_version"}


def _continue_sequences(connection: Connection, tables: Iterable[Table]) -> None:
    """Let the numbers that PostgreSQL gives to rows go on behind those that were inserted with theirs."""
    for table in tables:
        for column in table.primary_key:
            if "nextval" in str(getattr(column.server_default, "arg", "")):
                sequence, last = func.pg_get_serial_sequence(table.name, column.name), func.max(column)
                connection.execute(select(func.setval(sequence, func.coalesce(last, 1), last.is_not(None))))


def _check(path: Path) -> Saved:
    """Read the whole file; raise ArtifactError unless it is as it was written."""
    digest, rows, head, end = hashlib.sha256(), 0, {}, {}
    for number, line in enumerate(_read_lines(path)):
        value = parse_json(line, f"{path}: line {number + 1}", _FIX)
        if number == 0:
            head = value if isinstance(value, dict) else {}
            if head.get("format") != FORMAT:
                break  # whatever it is, it may be of any length
        elif isinstance(value, dict):
            end = {**value, "digest": digest.hexdigest(), "line": number}
        else:
            rows += 1
        digest.update(line)
    if head.get("format") != FORMAT:
        raise ArtifactError(f"{path}: not a backup of a ledger; `ptp backup FILE` writes one")
    if not re.fullmatch(r"[0-9]{4}", str(head.get("schema"))):
        raise ArtifactError(f"{path}: {shorten(head.get('schema'))} is no schema of a ledger; {_FIX}")
    if (end.get("rows"), end.get("sha256"), end.get("line")) != (rows, end.get("digest"), rows + 1):
        raise ArtifactError(f"{path}: {_FIX}")
    return Saved(str(head.get("schema")), rows)


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield each row with its table, and the bytes that it takes in the file."""
    for number, line in enumerate(_read_lines(path), 1):
        value = parse_json(line, str(path), _FIX)
        if isinstance(value, list):
            with parsing(f"{path}: line {number}", _FIX):
                table, row = value
                decoded = {str(column): _decode(cell) for column, cell in row.items()}
            yield str(table), decoded, len(line)


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) as file:
            while line := file.readline(MAX_LINE):
                yield line
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ArtifactError(f"{path}: cannot be read as a backup ({error}); {_FIX}") from None


def _encode(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _decode(value: Any) -> Any:
    return (
        base64.b64decode(value["base64"], validate=True)
        if isinstance(value, dict) and set(value) == {"base64"}
        else value
    )
