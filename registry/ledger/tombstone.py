"""Tombstones: the right to delete a prompt or a snapshot, in the database that holds the intents of publishing.

Burying and intending are transactions of one name, so one of them is first and the other sees it. A tombstone lasts for
SECONDS after it was last renewed; then a publish may take over. The tombstone of a deleted version stays as its mark.
"""

from collections.abc import Callable

from sqlalchemy import Connection, delete, exists, or_, select, update

from ptpipeline.errors import LeaseHeld, PromotionRefused
from registry.ledger import tables
from registry.ledger.clock import read_time
from registry.ledger.database import Database, put, seconds_left
from registry.ledger.lease import owner

SECONDS = 60.0

Needed = Callable[[Connection], bool]


class Tombstone:
    """The tombstone that one collector sets for a prompt or a snapshot."""

    def __init__(self, database: Database, task: str, digest: str) -> None:
        self.task, self.digest = task, digest
        self._database, self._owner = database, owner()
        table = tables.tombstone
        self._mine = (table.c.task == task, table.c.digest == digest, table.c.owner == self._owner)

    def bury(self, needed: Needed) -> bool:
        """Set it, unless `needed` answers yes in the same transaction; return whether it is set.

        Raises LeaseHeld while another collector has it, dead or alive.
        """
        table = tables.tombstone
        with self._database.writing(lock_name(self.task, self.digest)) as connection:
            clock = self._database.clock(connection)
            if needed(connection):
                return False
            _refuse_held(connection, clock, self.task, self.digest)
            put(
                connection,
                table,
                {"task": self.task, "digest": self.digest},
                owner=self._owner,
                expires_at=clock + SECONDS,
                at=read_time(connection),
            )
        return True

    def renew(self) -> bool:
        """Keep it for SECONDS from now; return False if it expired and somebody took over."""
        return self._expire(lambda connection: self._database.clock(connection) + SECONDS)

    def leave(self) -> bool:
        """Leave it as the mark of what was deleted, which may be published again at once; return False if somebody took
        over.
        """
        return self._expire(lambda _: 0.0)

    def lift(self) -> bool:
        """Remove it; return False if somebody took over."""
        with self._database.writing(lock_name(self.task, self.digest)) as connection:
            return connection.execute(delete(tables.tombstone).where(*self._mine)).rowcount > 0

    def _expire(self, at: Callable[[Connection], float]) -> bool:
        with self._database.writing(lock_name(self.task, self.digest)) as connection:
            ours = update(tables.tombstone).where(*self._mine)
            return connection.execute(ours.values(expires_at=at(connection))).rowcount > 0


def take_over(database: Database, connection: Connection, task: str, digest: str) -> None:
    """Remove the tombstone of what is about to be stored again; raise LeaseHeld while somebody deletes it.

    The transaction must hold `lock_name`.
    """
    table = tables.tombstone
    _refuse_held(connection, database.clock(connection), task, digest)
    connection.execute(delete(table).where(table.c.task == task, table.c.digest == digest))


def _refuse_held(connection: Connection, now: float, task: str, digest: str) -> None:
    """Raise LeaseHeld while a collector has the tombstone."""
    table = tables.tombstone
    expires = connection.scalar(select(table.c.expires_at).where(table.c.task == task, table.c.digest == digest))
    left = seconds_left(expires or 0.0, now, SECONDS)
    if left > 0:
        raise LeaseHeld(
            f"{task}: {digest[:12]} is being deleted by the garbage collection, for {left:.0f} s more; try again then"
        )


def refuse_buried(database: Database, connection: Connection, task: str, digest: str) -> None:
    """Let nobody bury the prompt until the transaction ends; raise PromotionRefused if somebody has."""
    database.hold(connection, lock_name(task, digest))
    table = tables.tombstone
    if connection.scalar(select(table.c.at).where(table.c.task == task, table.c.digest == digest)) is not None:
        raise PromotionRefused(collected_sentence(task, digest))


def collected_sentence(task: str, digest: str) -> str:
    """Say why a version that was collected cannot be used, and what to do."""
    return (
        f"{task}: the garbage collection deleted prompt {digest[:12]}, or is about to; `ptp run {task}` trains "
        f"a prompt from today's data and recipe, `ptp versions {task}` shows what is kept"
    )


def forget_unmarked(database: Database) -> None:
    """Remove expired tombstones that mark no version: killed collectors left them behind."""
    table, version = tables.tombstone, tables.version
    marks = exists().where(version.c.task == table.c.task, version.c.digest == table.c.digest)
    with database.writing() as connection:
        now = database.clock(connection)
        expired = or_(table.c.expires_at <= now, table.c.expires_at > now + SECONDS)  # as `seconds_left` says
        connection.execute(delete(table).where(expired, ~marks))


def lock_name(task: str, digest: str) -> str:
    """Return the name that all transactions about the existence of that prompt or snapshot share."""
    return f"digest {task}/{digest}"
