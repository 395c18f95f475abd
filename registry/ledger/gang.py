"""The lease of a gang: the right to work on its tasks, from their training to their promotion.

It is one lease per task, taken together or not at all: the gangs of two runs may share some of their tasks only. While
a run holds it, a thread extends it, and every transaction in which the run writes to the ledger begins with the
question whether it is still the holder. So of two runs that work on the same task (one that stood still and comes back,
one that was started twice) one alone writes, and the other stops with Overtaken.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, select, tuple_, update

from ptpipeline.errors import LeaseHeld, Overtaken, PtpError
from registry.ledger import tables
from registry.ledger.database import Database, outlasting
from registry.ledger.lease import Lease

SECONDS = 30.0  # that a lease lasts: so long its tasks wait for a worker that died on another machine
_BEATS = 3  # how often it is extended in that time
_POLL_SECONDS = 0.5

log = logging.getLogger(__name__)


class GangLease:
    """Some leases together, each for `seconds` after they were last extended."""

    def __init__(self, database: Database, names: Sequence[str], seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._database = database
        self._leases = [Lease(database, name, seconds) for name in sorted(set(names))]  # one order: no deadlock

    def take(self) -> None:
        """Take all of them; raise LeaseHeld, and have none, if a living process has one."""
        try:
            with self._database.writing() as connection:
                for lease in self._leases:
                    self._database.hold(connection, f"lease {lease.name}")
                for lease in self._leases:
                    _free_if_dead(connection, self._database, lease.name)
                    lease.take(connection)
        except BaseException:  # rolled back: another run may have these generations by now
            for lease in self._leases:
                lease.generation = None
            raise

    @property
    def _held(self) -> list[tuple[str, int | None]]:
        """Name and generation of each lease."""
        return [(lease.name, lease.generation) for lease in self._leases]

    def keep(self, connection: Connection) -> None:
        """Extend all of them, as part of that transaction; raise Overtaken if another run took one."""
        table = tables.lease
        ours = tuple_(table.c.name, table.c.generation).in_(self._held)
        expires = self._database.clock(connection) + self.seconds
        if connection.execute(update(table).where(ours).values(expires_at=expires)).rowcount == len(self._held):
            return
        left = {(row.name, row.generation) for row in connection.execute(select(table).where(ours))}
        lost = next(name for name, generation in self._held if (name, generation) not in left)
        holder = connection.scalar(select(table.c.owner).where(table.c.name == lost))
        by = f" ({holder})" if holder else ""
        raise Overtaken(
            f"{lost}: this run stood still for more than {self.seconds:.0f} s, and another one{by} took its work over; "
            "this one stops and has written nothing since, the other goes on from the checkpoint"
        )

    def check(self) -> None:
        """Extend all of them now; raise Overtaken if another run took one."""
        with self._database.writing() as connection:
            self.keep(connection)

    @outlasting
    def note(self, gang: str | None) -> None:
        """Write down, or forget, in which gang the tasks train: `open_gangs` tells whoever takes them over."""
        with self._database.writing() as connection:
            self.keep(connection)
            ours = tables.lease.c.name.in_([name for name, _ in self._held])
            connection.execute(update(tables.lease).where(ours).values(gang=gang))

    def release(self) -> None:
        """Give back those that are still ours."""
        with self._database.writing() as connection:
            for lease in self._leases:
                lease.free(connection)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Extend them from a thread of their own while the block works; a ledger that is away is tried again."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.seconds / _BEATS):
                try:
                    self.check()
                except Overtaken:
                    return  # whoever works in the block is told as soon as they write
                except PtpError as error:
                    log.warning("a lease could not be extended, and is tried again: %s", error)

        thread = threading.Thread(target=beat, name="gang lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def working_on(
    database: Database, tasks: Sequence[str], wait: float | None = None, seconds: float = SECONDS
) -> Iterator[GangLease]:
    """Make this thread the only one that works on those tasks; inside, every write to the ledger is fenced.

    A dead worker's lease is waited for, at most `wait` seconds, by default until it has expired; a worker of this
    machine whose process is gone is not waited for. Raises LeaseHeld if another run goes on working on one of them.
    """
    with holding(database, [_name(task) for task in tasks], wait, seconds) as lease:
        yield lease


@contextmanager
def holding(
    database: Database, names: Sequence[str], wait: float | None = None, seconds: float = SECONDS
) -> Iterator[GangLease]:
    """Hold the leases of those names as `working_on` holds those of tasks."""
    lease = GangLease(database, names, seconds)
    _take(lease, seconds + _POLL_SECONDS if wait is None else wait)
    try:
        with lease.beating(), database.fenced(lease.keep):
            yield lease
    finally:
        try:
            lease.release()
        except PtpError as error:  # it expires by itself
            log.warning("a lease could not be given back: %s", error)


@outlasting
def open_gangs(database: Database, tasks: Sequence[str]) -> dict[str, str]:
    """Return the gang of each of these tasks whose training has begun and not ended."""
    table = tables.lease
    query = select(table.c.name, table.c.gang).where(table.c.gang.is_not(None))
    with database.reading() as connection:
        gangs: Mapping[str, str] = {row.name: row.gang for row in connection.execute(query)}
    return {task: gangs[_name(task)] for task in tasks if _name(task) in gangs}


def _name(task: str) -> str:
    return f"task {task}"


def _take(lease: GangLease, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            return outlasting(lease.take)()
        except LeaseHeld as held:
            if time.monotonic() >= deadline:
                raise LeaseHeld(
                    f"{str(held).partition(' is being written')[0]}: another run works on it, and goes on doing so "
                    f"({held}); wait until it has ended, or stop it"
                ) from None
        time.sleep(min(_POLL_SECONDS, lease.seconds / 4))


def _free_if_dead(connection: Connection, database: Database, name: str) -> None:
    """End the lease at once if its holder's process ran on this machine and is gone: only a SQLite ledger can tell."""
    if database.boot is None:
        return
    table = tables.lease
    holder = connection.scalar(select(table.c.owner).where(table.c.name == name))
    host, pid, _ = holder.split(":") if holder and holder.count(":") == 2 else ("", "", "")
    if host == socket.gethostname() and not _runs(int(pid)):
        connection.execute(update(table).where(table.c.name == name).values(expires_at=0.0))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True
