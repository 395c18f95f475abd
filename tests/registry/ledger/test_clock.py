"""A worker whose clock is an hour off: what other machines compare with is dated by the database's clock."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from benchmarks.fixtures.postgres import Postgres
from benchmarks.fixtures.prompts import a_report, a_snapshot, a_task, a_verdict, an_artifact
from ptpipeline.records import base
from registry.ledger import tables
from registry.ledger.events import record_event, take_due
from registry.ledger.ledger import Ledger
from registry.ledger.nights import NightTask, RecordedNight, begin_night, end_night, list_nights, sum_tasks

pytestmark = pytest.mark.servers

HOUR = timedelta(hours=1)
SECONDS = timedelta(seconds=60)  # of a machine that is busy
EVENT = {"task": "mood", "alias": None, "actor": "me", "from": None, "to": None, "reason": "r", "verdict": None}


@pytest.fixture(params=[-HOUR, HOUR], ids=["behind", "ahead"])
def ledger(request: pytest.FixtureRequest, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """A ledger on a server, opened by a worker whose clock is an hour off."""
    monkeypatch.setattr(base, "read_clock", lambda: datetime.now(UTC) + request.param)
    opened = Ledger(postgres.create_database(f"clocks-{uuid.uuid4().hex}"))
    assert abs(datetime.fromisoformat(base.now()) - datetime.now(UTC)) > SECONDS
    yield opened
    opened.close()


def is_now(time: str) -> bool:
    return abs(datetime.fromisoformat(time) - datetime.now(UTC)) < SECONDS


def test_a_fresh_verdict_is_fresh(ledger: Ledger) -> None:
    task = a_task()
    report = a_report(an_artifact(task), 0.5)
    ledger.save_report(report)
    verdict = a_verdict(task, report, None)
    ledger.save_verdict(verdict)
    assert is_now(ledger.last_judged()[task.name])
    assert all(map(is_now, ledger.verdict_times(task.name, verdict.digest).values()))


def test_a_night_begins_and_ends_when_it_did(ledger: Ledger) -> None:
    started = ledger.database.time().isoformat()
    begun = RecordedNight(id="n", flow="nightly", cause="me", page=None, started=started)
    begin_night(ledger, begun)
    end_night(ledger, begun, "Completed", [NightTask(task="mood", status="promoted", reason="r")])
    [night] = list_nights(ledger, 1)
    [total] = sum_tasks(ledger)
    assert is_now(night.started)
    assert is_now(str(night.ended))
    assert is_now(total.last)


def test_an_event_is_dated_and_signed_by_the_time_that_its_receiver_has(ledger: Ledger) -> None:
    record_event(ledger.database, "stale_task", EVENT)
    event = take_due(ledger.database, "ops")
    assert event is not None
    assert is_now(event.at)
    assert is_now(datetime.fromtimestamp(event.taken, UTC).isoformat())


def test_what_a_run_needs_is_as_young_as_it_is(ledger: Ledger) -> None:
    task = a_task()
    ledger.save_snapshot(a_snapshot(task))
    ledger.intend(task.name, an_artifact(task).digest)
    with ledger.database.reading() as connection:
        assert is_now(connection.execute(tables.snapshot.select()).one().at)
        assert is_now(connection.execute(tables.intent.select()).one().at)
