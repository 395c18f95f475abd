"""When each object store was last seen to honour conditional puts."""

from typing import NamedTuple

from sqlalchemy import select

from registry.ledger import tables
from registry.ledger.database import Database, put


class LastProbe(NamedTuple):
    """When a store was probed, None if never, and the time now: both by the database's clock."""

    at: float | None
    now: float


def last_probe(database: Database, store: str) -> LastProbe:
    """Return when that store was probed last."""
    with database.reading() as connection:
        at = connection.scalar(select(tables.probe.c.at).where(tables.probe.c.store == store))
        return LastProbe(at, database.clock(connection))


def record_probe(database: Database, store: str, at: float) -> None:
    """Remember that the store was probed at that time."""
    with database.writing() as connection:
        put(connection, tables.probe, {"store": store}, at=at)
