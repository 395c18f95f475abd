"""Secrets that the ledger keeps, so that who may only write to the object store cannot seal what he wrote there."""

import secrets

from sqlalchemy import Select, select

from registry.ledger import tables
from registry.ledger.clock import read_time
from registry.ledger.database import Database, insert

CHECKPOINTS = "checkpoints"
_BYTES = 32


def take_secret(database: Database, name: str) -> bytes:
    """Return the secret of that name; the first call makes it at random, and all processes get the same one."""
    known = find_secret(database, name)
    if known is not None:
        return known
    with database.writing() as connection:
        row = {"name": name, "value": secrets.token_hex(_BYTES), "at": read_time(connection)}
        connection.execute(insert(connection, tables.secret).values(**row).on_conflict_do_nothing())
        return bytes.fromhex(connection.execute(_value_of(name)).scalar_one())


def find_secret(database: Database, name: str) -> bytes | None:
    """Return the secret of that name; None if none was made yet."""
    with database.reading() as connection:
        value = connection.scalar(_value_of(name))
    return bytes.fromhex(value) if value else None


def _value_of(name: str) -> Select[tuple[str]]:
    return select(tables.secret.c.value).where(tables.secret.c.name == name)
