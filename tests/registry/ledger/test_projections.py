"""What the ledger notes of MLflow's aliases: writes that may be under way, and how long an alias has differed."""

import time
from typing import Any

import pytest
from sqlalchemy import update

from ptpipeline.errors import LeaseHeld
from ptpipeline.records.versions import Promotion
from registry.ledger import tables
from registry.ledger.lease import Lease
from registry.ledger.ledger import Ledger, Move
from registry.ledger.projections import (
    applied_projections,
    end_attempt,
    forget_sighting,
    is_attempted,
    note_attempt,
    sight,
)
from registry.registry import Registry

LATE, OTHER = "b" * 64, "c" * 64


@pytest.fixture
def ledger(plain: Registry) -> Ledger:
    plain.ledger.add_version("mood", "a" * 64)
    return plain.ledger


@pytest.fixture
def head(ledger: Ledger) -> Promotion:
    return ledger.append(Move(task="mood", alias="production", version=1, actor="me", reason="why", expected=0))


def a_lease(ledger: Ledger, seconds: float = 60) -> Lease:
    lease = Lease(ledger.database, "project mood@production", seconds)
    lease.renew()
    return lease


def lost(ledger: Ledger) -> Lease:
    """A lease that expired, and that another process holds now."""
    lease = a_lease(ledger, 0.01)
    time.sleep(0.02)
    a_lease(ledger)
    return lease


def another(head: Promotion, **changes: Any) -> Promotion:
    return head.model_copy(update=changes)


def test_a_write_is_noted_only_by_the_holder_of_the_lease(ledger: Ledger, head: Promotion) -> None:
    with pytest.raises(LeaseHeld):
        note_attempt(ledger, lost(ledger), head)
    assert not is_attempted(ledger, head, head.digest)


def test_the_note_of_a_write_stays_if_the_lease_was_lost_meanwhile(ledger: Ledger, head: Promotion) -> None:
    lease = a_lease(ledger, 0.01)
    note = note_attempt(ledger, lease, head)
    time.sleep(0.02)
    a_lease(ledger)
    with pytest.raises(LeaseHeld):
        end_attempt(ledger, lease, head, note, None)
    assert is_attempted(ledger, head, head.digest)


@pytest.mark.parametrize("changes", [{"task": "topic"}, {"alias": "canary"}])
def test_a_note_is_of_one_alias(ledger: Ledger, head: Promotion, changes: dict[str, str]) -> None:
    note_attempt(ledger, a_lease(ledger), head)
    assert is_attempted(ledger, head, head.digest)
    assert not is_attempted(ledger, another(head, **changes), head.digest)


def test_a_note_is_of_one_prompt(ledger: Ledger, head: Promotion) -> None:
    note_attempt(ledger, a_lease(ledger), head)
    assert not is_attempted(ledger, head, OTHER)


def test_the_end_of_a_write_removes_its_own_note(ledger: Ledger, head: Promotion) -> None:
    lease = a_lease(ledger)
    killed, own = note_attempt(ledger, lease, head), note_attempt(ledger, lease, head)
    end_attempt(ledger, lease, head, own, None)
    assert is_attempted(ledger, head, head.digest)
    end_attempt(ledger, lease, head, killed, None)
    assert not is_attempted(ledger, head, head.digest)


def test_the_end_of_a_write_removes_one_note_of_what_it_undid(ledger: Ledger, head: Promotion) -> None:
    lease = a_lease(ledger)
    for digest in (LATE, LATE, OTHER):
        note_attempt(ledger, lease, another(head, digest=digest))
    remaining = []
    for _ in range(2):
        end_attempt(ledger, lease, head, note_attempt(ledger, lease, head), LATE)
        remaining.append((is_attempted(ledger, head, LATE), is_attempted(ledger, head, OTHER)))
    assert remaining == [(True, True), (False, True)]


def test_the_first_sight_of_a_difference_is_its_beginning(ledger: Ledger, head: Promotion) -> None:
    assert sight(ledger, head, LATE) == 0.0
    time.sleep(0.02)
    first = sight(ledger, head, LATE)
    time.sleep(0.02)
    assert 0.02 <= first < sight(ledger, head, LATE)


def test_another_prompt_is_another_difference(ledger: Ledger, head: Promotion) -> None:
    sight(ledger, head, LATE)
    time.sleep(0.01)
    assert sight(ledger, head, OTHER) == 0.0


def test_a_difference_to_another_head_is_another(ledger: Ledger, head: Promotion) -> None:
    sight(ledger, head, LATE)
    time.sleep(0.01)
    assert sight(ledger, another(head, seq=2), LATE) == 0.0


@pytest.mark.parametrize("changes", [{"task": "topic"}, {"alias": "canary"}])
def test_a_difference_is_forgotten_for_its_alias_alone(
    ledger: Ledger, head: Promotion, changes: dict[str, str]
) -> None:
    for promotion in (head, another(head, **changes)):
        sight(ledger, promotion, LATE)
    forget_sighting(ledger, another(head, **changes))
    time.sleep(0.01)
    assert sight(ledger, head, LATE) > 0
    assert sight(ledger, another(head, **changes), LATE) == 0.0


def test_a_write_of_the_alias_ends_its_difference(ledger: Ledger, head: Promotion) -> None:
    lease = a_lease(ledger)
    sight(ledger, head, LATE)
    end_attempt(ledger, lease, head, note_attempt(ledger, lease, head), None)
    assert applied_projections(ledger).sighted == set()


def test_store_and_mlflow_follow_apart(ledger: Ledger, head: Promotion) -> None:
    ledger.record_applied("store", head)
    assert ledger.applied("mlflow", "mood", "production") is None
    assert ledger.applied("store", "topic", "production") is None
    assert ledger.applied("store", "mood", "canary") is None
    assert ledger.applied("store", "mood", "production") == (1, 1)


def test_a_difference_that_was_seen_in_the_future_counts_anew(ledger: Ledger, head: Promotion) -> None:
    """The clock was set back since, or the machine was started again."""
    sight(ledger, head, OTHER)
    with ledger.database.writing() as connection:
        connection.execute(update(tables.sighting).values(seen_at=tables.sighting.c.seen_at + 10**9))
    assert sight(ledger, head, OTHER) == 0.0
    assert 0.0 < sight(ledger, head, OTHER) < 60
