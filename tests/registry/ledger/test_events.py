"""The outbox of the ledger, on both databases: what is due, what waits, and what is looked at no more."""

import pytest
from sqlalchemy import update

from registry.ledger import tables
from registry.ledger.events import find_backlog, record_delivered, record_event, take_due
from registry.ledger.ledger import Ledger

OLD = "2026-01-01T00:00:00+00:00"


def record(ledger: Ledger, *reasons: str) -> None:
    for reason in reasons:
        record_event(ledger.database, "stale_task", {"reason": reason})


def taken(ledger: Ledger, target: str = "ops") -> list[str]:
    """What the target takes now, event by event."""
    reasons = []
    while event := take_due(ledger.database, target):
        record_delivered(ledger.database, target, event)
        reasons.append(event.record["reason"])
    return reasons


def test_each_target_takes_each_event_once_and_in_order(ledger: Ledger) -> None:
    record(ledger, "first", "second")
    assert taken(ledger) == ["first", "second"]
    record(ledger, "third")
    assert taken(ledger) == ["third"]
    assert taken(ledger, "chat") == ["first", "second", "third"]


def test_what_was_not_taken_waits_and_is_due_again(ledger: Ledger) -> None:
    record(ledger, "first")
    first = take_due(ledger.database, "ops")
    assert take_due(ledger.database, "ops") is None
    backlog = find_backlog(ledger.database, "ops")
    assert first
    assert (backlog.events, backlog.oldest) == (1, first.at)
    with ledger.database.writing() as connection:
        connection.execute(update(tables.delivery).values(due=ledger.database.clock(connection) - 1))
    again = take_due(ledger.database, "ops")
    assert again
    assert again.taken >= first.taken  # it is signed by the time at which it is sent
    assert again._replace(taken=first.taken) == first


def test_what_was_tried_least_comes_first(ledger: Ledger) -> None:
    record(ledger, "refused")
    take_due(ledger.database, "ops")
    record(ledger, "new")
    with ledger.database.writing() as connection:
        connection.execute(update(tables.delivery).values(due=ledger.database.clock(connection) - 1))
    assert taken(ledger) == ["new", "refused"]


def test_what_was_told_long_ago_is_not_looked_at_again(ledger: Ledger) -> None:
    with ledger.database.writing() as connection:
        for number in range(3):
            row = {"id": f"evt_{number}", "kind": "promotion", "record": {"reason": "old"}, "at": OLD}
            connection.execute(tables.event.insert().values(**row))
        connection.execute(tables.subscriber.insert().values(target="ops", since=1, at=OLD))
    assert taken(ledger) == ["old"] * 3
    with ledger.database.reading() as connection:
        [row] = connection.execute(tables.subscriber.select()).all()
    assert row.since == 4
    record(ledger, "new")
    assert taken(ledger) == ["new"]


@pytest.mark.parametrize("times", [1, 3])
def test_an_event_of_which_there_is_one_is_written_once(ledger: Ledger, times: int) -> None:
    for _ in range(times):
        record_event(ledger.database, "stale_task", {"reason": "silence"}, once=["mood", OLD])
    assert taken(ledger) == ["silence"]
