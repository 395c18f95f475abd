"""Leases: the right to write one projection, or to work on one task, for a limited time, kept in the ledger's database.

No clock that a user of the database can set decides one: see `Database.clock`. And none protects what is written:
whoever writes under a lease calls `keep` in the same transaction, or just before a write that is cut off in time.
"""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Update, select, update

from ptpipeline.errors import LeaseHeld
from registry.ledger import tables
from registry.ledger.database import Database, put, seconds_left

LONGEST = 60.0  # seconds that a lease may last
NOBODY = ""  # the owner of a lease that was given back


class Lease:
    """The right to write what `name` says, for `seconds` (at most LONGEST) after it was last renewed.

    Each taking has the next `generation`, by which its holder is known: one who stood still while another came, or came
    and went, has an older one.
    """

    def __init__(self, database: Database, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self.generation: int | None = None
        self._database = database
        self._owner = owner()

    def renew(self) -> None:
        """Take the lease, or extend it from now on; raise LeaseHeld if another process has it."""
        before = self.generation
        try:
            with self._database.writing(f"lease {self.name}") as connection:
                self.take(connection)
        except BaseException:  # rolled back: another process may have that generation by now
            self.generation = before
            raise

    def take(self, connection: Connection, **noted: Any) -> None:
        """`renew` it as part of that transaction, which holds `lease NAME`; `noted` goes into its row."""
        mine = select(tables.lease).where(tables.lease.c.name == self.name)
        row = connection.execute(mine.with_for_update()).one_or_none()  # `keep` may be extending it just now
        now = self._database.clock(connection)
        last = row.generation if row else 0
        if row and last != self.generation:
            left = _seconds_left(self._database, row, now)
            if left > 0:
                raise LeaseHeld(f"{self.name} is being written by {row.owner}, for {left:.0f} s more; try again then")
        self.generation = last if last == self.generation else last + 1
        held = {"owner": self._owner, "boot": self._database.boot, "generation": self.generation}
        put(connection, tables.lease, {"name": self.name}, **held, expires_at=now + self.seconds, **noted)

    def keep(self, connection: Connection) -> None:
        """Extend it from now on, as part of that transaction; raise LeaseHeld if another process took it meanwhile.

        Unlike `renew` it never takes the lease back: another holder may have come and gone.
        """
        expires = self._database.clock(connection) + self.seconds
        if connection.execute(self._ours().values(owner=self._owner, expires_at=expires)).rowcount == 0:
            raise LeaseHeld(
                f"{self.name}: this process stood still for longer than its lease, and another took over; run it again"
            )

    def release(self) -> None:
        """Give the lease back, unless another process took it after it expired; the row keeps the generation."""
        with self._database.writing() as connection:
            self.free(connection)

    def free(self, connection: Connection) -> None:
        """`release` it as part of that transaction."""
        connection.execute(self._ours().values(owner=NOBODY, expires_at=0.0))
        self.generation = None

    def _ours(self) -> Update:
        table = tables.lease
        return update(table).where(table.c.name == self.name, table.c.generation == self.generation)


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
    with database.reading() as connection:
        return [ExpiredLease(row.name, row.owner) for row in _find_expired(database, connection)]


def remove_expired_leases(database: Database) -> int:
    """Give back what killed holders left behind; return how many leases that were."""
    table = tables.lease
    with database.writing() as connection:
        expired = _find_expired(database, connection)
        for row in expired:
            as_seen = update(table).where(
                table.c.name == row.name,
                table.c.expires_at == row.expires_at,  # else its holder has just extended it
            )
            connection.execute(as_seen.values(owner=NOBODY, expires_at=0.0))
        return len(expired)


def _find_expired(database: Database, connection: Connection) -> list[Row[Any]]:
    held = select(tables.lease).where(tables.lease.c.owner != NOBODY).order_by(tables.lease.c.name)
    now = database.clock(connection)
    return [row for row in connection.execute(held) if not _seconds_left(database, row, now)]


def _seconds_left(database: Database, row: Row[Any], now: float) -> float:
    """How long the holder still has it; 0 at once if the machine was started again since, so that he is gone."""
    return 0.0 if row.boot != database.boot else seconds_left(row.expires_at, now, LONGEST)


def owner() -> str:
    """Return a new name for one holder, by which people find its process."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
