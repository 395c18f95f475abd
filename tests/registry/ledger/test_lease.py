"""Leases: only their holder renews, keeps and gives them back, and what expired is told from what is held."""

import time
import uuid
from typing import Any

import pytest
from sqlalchemy import Engine, event, update

from benchmarks.fixtures.postgres import Postgres
from ptpipeline.errors import LeaseHeld, ServiceUnavailable
from registry.ledger import tables
from registry.ledger.lease import Lease, expired_leases, remove_expired_leases
from registry.ledger.ledger import Ledger
from registry.registry import Registry

NAME = "project mood@production"
BRIEF, LONG = 0.05, 60.0  # seconds


def expired(registry: Registry) -> Lease:
    """A lease whose holder stood still until it ended."""
    lease = Lease(registry.ledger.database, NAME, BRIEF)
    lease.renew()
    time.sleep(BRIEF + 0.02)
    return lease


def held(registry: Registry, name: str = NAME) -> Lease:
    lease = Lease(registry.ledger.database, name, LONG)
    lease.renew()
    return lease


def test_an_expired_holder_does_not_free_the_lease_of_the_next(plain: Registry) -> None:
    late = expired(plain)
    held(plain)
    late.release()
    with pytest.raises(LeaseHeld, match="is being written by"):
        held(plain)


def test_an_expired_holder_does_not_extend_the_lease_of_the_next(plain: Registry) -> None:
    late, holder = expired(plain), held(plain)
    with pytest.raises(LeaseHeld, match="another took over"), plain.ledger.database.writing() as connection:
        late.keep(connection)
    holder.renew()


def test_a_lease_that_came_and_went_is_not_kept(plain: Registry) -> None:
    late = expired(plain)
    held(plain).release()
    with pytest.raises(LeaseHeld, match="another took over"), plain.ledger.database.writing() as connection:
        late.keep(connection)


def test_a_kept_lease_lasts_from_then_on(plain: Registry) -> None:
    lease = expired(plain)
    lease.seconds = LONG
    with plain.ledger.database.writing() as connection:
        lease.keep(connection)
    with pytest.raises(LeaseHeld):
        held(plain)


def test_a_kept_lease_leaves_other_leases_as_they_are(plain: Registry) -> None:
    expired(plain)
    other = held(plain, "project mood@canary")
    with plain.ledger.database.writing() as connection:
        other.keep(connection)
    assert [lease.name for lease in expired_leases(plain.ledger.database)] == [NAME]


def test_a_given_back_lease_leaves_other_leases_as_they_are(plain: Registry) -> None:
    held(plain)
    held(plain, "project mood@canary").release()
    with pytest.raises(LeaseHeld):
        held(plain)


def test_an_expired_lease_is_taken(plain: Registry) -> None:
    expired(plain)
    held(plain).renew()


def test_only_expired_leases_are_removed(plain: Registry) -> None:
    expired(plain)
    holder = held(plain, "project mood@canary")
    assert remove_expired_leases(plain.ledger.database) == 1
    with plain.ledger.database.writing() as connection:
        holder.keep(connection)
    assert expired_leases(plain.ledger.database) == []


@pytest.mark.servers
@pytest.mark.parametrize("by", ["its holder", "another"])
def test_a_lease_that_is_taken_while_expired_ones_are_removed_stays(
    postgres: Postgres, new_database: str, by: str
) -> None:
    """SQLite lets nobody else write meanwhile."""
    url = postgres.create_database(f"ledger-{uuid.uuid4().hex}", new_database)
    ledger, other = Ledger(url), Ledger(url)
    holder = Lease(other.database, NAME, BRIEF)
    holder.renew()
    holder.seconds = LONG
    time.sleep(BRIEF + 0.02)
    asked: list[str] = []

    def take(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM lease" in statement and not asked:
            asked.append(statement)
            (holder if by == "its holder" else Lease(other.database, NAME, LONG)).renew()

    event.listen(Engine, "after_cursor_execute", take)
    try:
        remove_expired_leases(ledger.database)
    finally:
        event.remove(Engine, "after_cursor_execute", take)
    with pytest.raises(LeaseHeld, match="is being written by"):
        Lease(ledger.database, NAME, LONG).renew()
    ledger.close()
    other.close()


# ---------------------------------------------------------------- clocks and starts of the machine


def write_row(registry: Registry, **values: Any) -> None:
    """Let the row of the lease be as another clock, or an earlier start of the machine, left it."""
    table = tables.lease
    with registry.ledger.database.writing() as connection:
        connection.execute(update(table).where(table.c.name == NAME).values(**values))


def test_each_taking_has_the_next_generation(plain: Registry) -> None:
    generations = []
    for _ in range(3):
        lease = held(plain)
        generations.append(lease.generation)
        lease.renew()
        assert lease.generation == generations[-1]
        lease.release()
    assert generations == [1, 2, 3]


def test_the_lease_of_an_earlier_start_of_the_machine_is_taken_at_once(plain: Registry) -> None:
    late = held(plain)
    write_row(plain, boot="an-earlier-start")
    assert [lease.name for lease in expired_leases(plain.ledger.database)] == [NAME]
    held(plain)
    with pytest.raises(LeaseHeld, match="another took over"), plain.ledger.database.writing() as connection:
        late.keep(connection)


@pytest.mark.parametrize("hours", [1, 24 * 365 * 50])
def test_a_lease_that_ends_later_than_a_lease_can_last_is_taken(ledger: Ledger, hours: int) -> None:
    """A server's clock was set back since; or a ptpipeline that counted from 1970 wrote it."""
    Lease(ledger.database, NAME, LONG).renew()
    with ledger.database.writing() as connection:
        ends = ledger.database.clock(connection) + 3600 * hours
        connection.execute(update(tables.lease).values(expires_at=ends))
    Lease(ledger.database, NAME, LONG).renew()


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_set_clock_neither_ends_nor_keeps_a_lease(
    plain: Registry, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired(plain)
    held(plain, "project mood@canary")
    wall_clock = time.time
    monkeypatch.setattr(time, "time", lambda: wall_clock() + 3600 * hours)
    held(plain)
    with pytest.raises(LeaseHeld, match="is being written by"):
        held(plain, "project mood@canary")


def test_a_taking_that_was_not_committed_is_no_lease(plain: Registry) -> None:
    """Another process has that generation by then."""
    lease = Lease(plain.ledger.database, NAME, LONG)

    def fail(_connection: Any) -> None:
        raise OSError("the disk is full")

    event.listen(Engine, "commit", fail)
    try:
        with pytest.raises(ServiceUnavailable, match="the disk is full"):
            lease.renew()
    finally:
        event.remove(Engine, "commit", fail)
    held(plain)
    with pytest.raises(LeaseHeld, match="another took over"), plain.ledger.database.writing() as connection:
        lease.keep(connection)
