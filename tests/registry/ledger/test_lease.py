"""Leases: only their holder renews, keeps and gives them back, and what expired is told from what is held."""

import time

import pytest

from ptpipeline.errors import LeaseHeld
from registry.ledger.lease import Lease, expired_leases, remove_expired_leases
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
