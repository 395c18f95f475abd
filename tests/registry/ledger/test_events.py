"""The outbox of the ledger, on both databases: what is due, what waits, and what is looked at no more."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import select, update

from benchmarks.fixtures.prompts import a_report, a_task, a_verdict, an_artifact
from ptpipeline.gate.spending import Budget, look_at
from ptpipeline.records.verdicts import Reveal
from registry.ledger import tables
from registry.ledger.events import find_backlog, record_delivered, record_event, take_due
from registry.ledger.ledger import Ledger, Move

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


def test_what_was_told_within_an_hour_is_still_looked_at(ledger: Ledger) -> None:
    """A transaction that has an earlier number may still be open."""
    record(ledger, "first")
    assert taken(ledger) == ["first"]
    with ledger.database.reading() as connection:
        assert connection.scalar(select(tables.subscriber.c.since)) == 1


def test_a_version_that_another_alias_named_before_is_promoted_and_not_rolled_back(ledger: Ledger) -> None:
    for digest in "ab":
        ledger.add_version("mood", digest * 64)
    take_due(ledger.database, "ops")
    for alias, version, expected in (("staging", 1, 0), ("production", 2, 0), ("production", 1, 1)):
        ledger.append(Move(task="mood", alias=alias, version=version, actor="me", reason="try", expected=expected))
    kinds = []
    while event := take_due(ledger.database, "ops"):
        kinds.append(event.kind)
    assert kinds == ["promotion", "promotion", "promotion"]


def test_a_refusal_is_told_once_and_not_again_when_its_figures_are_revealed(ledger: Ledger) -> None:
    task = a_task()
    report = a_report(an_artifact(task), 0.5)
    failed, other = (a_verdict(task, report, champion, passed=False) for champion in (None, "c" * 64))
    revealed = failed.model_copy(update={"reveal": Reveal(by="ann", look=look_at(1, 1, Budget(0.05)))})
    take_due(ledger.database, "ops")
    for verdict in (failed, other, failed, revealed):
        ledger.save_verdict(verdict)
    told = []
    while event := take_due(ledger.database, "ops"):
        told.append((event.kind, event.record["verdict"]))
    assert told == [("gate_failed", verdict.verdict_digest()) for verdict in (failed, other)]


def test_a_target_that_is_new_is_told_of_the_last_day_alone(ledger: Ledger) -> None:
    record(ledger, "first")
    with ledger.database.writing() as connection:
        now = datetime.fromisoformat(connection.scalar(select(tables.event.c.at)))
        for hours in (25, 23):
            at = (now - timedelta(hours=hours)).isoformat()
            row = {"id": f"evt_{hours}", "kind": "promotion", "record": {"reason": f"{hours} hours ago"}, "at": at}
            connection.execute(tables.event.insert().values(**row))
    assert taken(ledger) == ["23 hours ago"]


def test_what_one_target_took_another_has_yet_to_take(ledger: Ledger) -> None:
    record(ledger, "first")
    events = {target: take_due(ledger.database, target) for target in ("ops", "chat")}
    assert events["ops"]
    record_delivered(ledger.database, "ops", events["ops"])
    assert [find_backlog(ledger.database, target).events for target in ("ops", "chat")] == [0, 1]
    with ledger.database.writing() as connection:
        connection.execute(update(tables.delivery).values(due=ledger.database.clock(connection) - 1))
    assert (taken(ledger), taken(ledger, "chat")) == ([], ["first"])
