"""Leases: the right to write one projection for a limited time, kept in the ledger's database."""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection, delete, select, update

from ptpipeline.errors import LeaseHeld
from registry.ledger import tables
from registry.ledger.database import Database, put


class Lease:
    """The right to write what `name` says, for `seconds` after it was last renewed."""

    def __init__(self, database: Database, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self._database = database
        self._owner = owner()

    def renew(self) -> None:
        """Take the lease, or extend it from now on; raise LeaseHeld if another process has it."""
        with self._database.writing(f"lease {self.name}") as connection:
            mine = select(tables.lease).where(tables.lease.c.name == self.name)
            row = connection.execute(mine.with_for_update()).one_or_none()  # `keep` may be extending it just now
            now = self._database.clock(connection)
            if row and row.owner != self._owner and row.expires_at > now:
                raise LeaseHeld(
                    f"{self.name} is being written by {row.owner}, for {row.expires_at - now:.0f} s more; try "
                    "again then"
                )
            put(connection, tables.lease, {"name": self.name}, owner=self._owner, expires_at=now + self.seconds)

    def keep(self, connection: Connection) -> None:
        """Extend it from now on, as part of that transaction; raise LeaseHeld if another process took it meanwhile.

        Unlike `renew` it never takes the lease back: another holder may have come and gone.
        """
        ours = update(tables.lease).where(tables.lease.c.name == self.name, tables.lease.c.owner == self._owner)
        expires = self._database.clock(connection) + self.seconds
        if connection.execute(ours.values(expires_at=expires)).rowcount == 0:
            raise LeaseHeld(
                f"{self.name}: this process stood still for longer than its lease, and another took over; run it again"
            )

    def release(self) -> None:
        """Give the lease back, unless another process took it after it expired."""
        with self._database.writing() as connection:
            connection.execute(
                delete(tables.lease).where(tables.lease.c.name == self.name, tables.lease.c.owner == self._owner)
            )


@contextmanager
def leased(database: Database, name: str, seconds: float) -> Iterator[Lease]:
    """Make the block the only writer called `name`, for at most `seconds` after the last renewal.

    Raises LeaseHeld if another process has the lease.
    """
    lease = Lease(database, name, seconds)
    lease.renew()
    try:
        yield lease
    finally:
        lease.release()


class ExpiredLease(NamedTuple):
    """A lease that nobody gave back, because its holder was killed."""

    name: str
    owner: str


def expired_leases(database: Database) -> list[ExpiredLease]:
    """Return the leases that expired and are still there, by name."""
    table = tables.lease
    with database.reading() as connection:
        now = database.clock(connection)
        expired = select(table.c.name, table.c.owner).where(table.c.expires_at < now).order_by(table.c.name)
        return [ExpiredLease(row.name, row.owner) for row in connection.execute(expired)]


def remove_expired_leases(database: Database) -> int:
    """Give back what killed holders left behind; return how many leases that were."""
    with database.writing() as connection:
        now = database.clock(connection)
        return connection.execute(delete(tables.lease).where(tables.lease.c.expires_at < now)).rowcount


def owner() -> str:
    """Return a new name for one holder, by which people find its process."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
