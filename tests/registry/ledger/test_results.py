"""What the stages remember is of one task and one prompt, the newest counts, and a ledger's file is durable."""

import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text, update

from benchmarks.fixtures.prompts import a_report, a_request, a_snapshot, a_task, a_verdict, an_artifact, published
from ptpipeline.errors import NotFound, ServiceUnavailable
from registry.ledger import clock, engine, tables
from registry.ledger.events import take_due
from registry.ledger.ledger import Ledger, Move
from registry.ledger.usage import Name, snapshots
from registry.registry import Registry

ONE, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def ledger(plain: Registry) -> Ledger:
    return plain.ledger


def test_the_newest_report_of_a_prompt_counts(ledger: Ledger) -> None:
    first = a_report(an_artifact(a_task(), 1), 0.8)
    second = first.model_copy(update={"evaluation_key": "e" * 64, "rows": 40})
    for report in (first, second):
        ledger.save_report(report)
        assert ledger.report_of("mood", first.digest) == report
    ledger.save_report(first)
    assert ledger.report_of("mood", first.digest) == first
    assert ledger.report("e" * 64) == second


def test_what_is_remembered_is_of_its_own_task_and_prompt(ledger: Ledger) -> None:
    task = a_task()
    report, snapshot = a_report(an_artifact(task, 1), 0.8), a_snapshot(task)
    verdict = a_verdict(task, report, None)
    ledger.save_report(report), ledger.save_verdict(verdict), ledger.save_snapshot(snapshot)
    assert ledger.report_of("topic", report.digest) is None
    assert ledger.report_of("mood", OTHER) is None
    assert (ledger.latest_verdict("topic", report.digest), ledger.verdicts("topic", report.digest)) == (None, [])
    assert (ledger.latest_verdict("mood", OTHER), ledger.verdicts("mood", OTHER)) == (None, [])
    assert ledger.snapshot("topic", snapshot.digest) is ledger.snapshot("mood", OTHER) is None
    assert ledger.snapshot_for("topic", "key") is ledger.snapshot_for("mood", "other") is None


def test_a_publication_is_of_its_own_task_and_prompt(ledger: Ledger, plain: Registry) -> None:
    task = a_task()
    published(plain, task, 1)
    digest = an_artifact(task, 1).digest
    assert ledger.publication("mood", digest) is not None
    assert ledger.publication("topic", digest) is ledger.publication("mood", OTHER) is None


def test_a_version_is_found_by_its_own_task(ledger: Ledger) -> None:
    ledger.add_version("mood", ONE)
    ledger.add_version("topic", OTHER)
    for missing in (lambda: ledger.version_of("topic", ONE), lambda: ledger.version("topic", 2)):
        with pytest.raises(NotFound):
            missing()
    assert (ledger.version_of("mood", ONE).number, ledger.version("topic", 1).digest) == (1, OTHER)


def test_the_verdict_of_another_tasks_twin_is_not_shown(ledger: Ledger) -> None:
    task = a_task("topic")
    verdict = a_verdict(task, a_report(an_artifact(task, 1), 0.8), None).model_copy(update={"digest": ONE})
    ledger.save_verdict(verdict)
    ledger.add_version("mood", ONE)
    assert ledger.version("mood", 1).passed is None
    assert ledger.add_version("topic", ONE).passed is True


def test_a_row_of_the_history_is_of_one_alias(ledger: Ledger) -> None:
    ledger.add_version("mood", ONE)
    ledger.append(Move(task="mood", alias="production", version=1, actor="me", reason="why", expected=0))
    assert ledger.promotion("mood", "production", 1) is not None
    assert ledger.promotion("mood", "canary", 1) is ledger.promotion("topic", "production", 1) is None
    assert ledger.promotion("mood", "production", 2) is None
    assert (ledger.history("mood", "canary"), ledger.history("topic"), ledger.heads("topic")) == ([], [], [])


def test_a_publish_that_is_begun_again_is_as_young_as_that(ledger: Ledger) -> None:
    ledger.intend("mood", ONE)
    (first,) = ledger.intents()
    time.sleep(0.002)
    ledger.intend("mood", ONE)
    (second,) = ledger.intents("mood")
    assert first.at < second.at
    assert ledger.intents("topic") == []


def test_an_intent_of_exactly_that_time_is_not_forgotten(ledger: Ledger) -> None:
    ledger.intend("mood", ONE)
    (intent,) = ledger.intents()
    ledger.forget_intents(intent.at)
    assert ledger.intents() == [intent]


def test_trainings_under_other_keys_stay_apart(ledger: Ledger) -> None:
    tuned = a_request(a_task(), 1).tuned
    ledger.save_tuned(tuned)
    ledger.save_tuned(tuned.model_copy(update={"training_key": "k" * 64, "digest": OTHER}))
    found = ledger.tuned("mood", "k" * 64)
    assert found is not None
    assert (found.digest, ledger.tuned("mood", tuned.training_key)) == (OTHER, tuned)


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize(("pragma", "value"), [("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1)])
def test_a_commit_is_on_the_disk_before_it_is_told(ledger: Ledger, pragma: str, value: object) -> None:
    with ledger.database.reading() as connection:
        assert connection.scalar(text(f"PRAGMA {pragma}")) == value


def test_a_writer_has_its_place_from_its_first_statement(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PRAGMAS", ("busy_timeout=50",))
    rival = Ledger(ledger.url)
    with ledger.database.writing(), pytest.raises(ServiceUnavailable, match="locked"):  # nothing is written yet
        rival.add_version("mood", ONE)
    rival.close()


def test_a_failed_transaction_leaves_nothing(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        killed_in_a_transaction(ledger)
    assert ledger.versions() == []
    assert sqlite3.connect(tmp_path / "ledger.db").execute("SELECT count(*) FROM version").fetchone() == (0,)


class Killed(BaseException):
    """Ends a transaction as a signal would."""


def killed_in_a_transaction(ledger: Ledger) -> None:
    with ledger.database.writing() as connection:
        connection.execute(text("INSERT INTO version (task, number, digest, at) VALUES ('mood', 1, 'x', 'now')"))
        raise Killed


@pytest.mark.parametrize("years", [0, 1])
def test_the_newest_verdict_is_the_last_whatever_the_clock_said(ledger: Ledger, years: int) -> None:
    task = a_task()
    report = a_report(an_artifact(task), 0.9)
    earlier, later = a_verdict(task, report, None, passed=True), a_verdict(task, report, "c" * 64, passed=False)
    ledger.save_verdict(earlier)
    with ledger.database.writing() as connection:  # by a clock that was ahead
        ahead = (datetime.now(UTC) + timedelta(days=365 * years)).isoformat()
        connection.execute(update(tables.verdict).values(at=ahead))
    ledger.save_verdict(later)
    assert ledger.latest_verdict(task.name, report.digest) == later
    assert ledger.verdicts(task.name, report.digest) == [later, earlier]


def test_of_two_verdicts_at_one_time_the_later_is_the_newest(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    task = a_task()
    report = a_report(an_artifact(task), 0.9)
    monkeypatch.setattr(clock, "now", lambda: "2026-11-26T02:00:00.000000+00:00")
    verdicts = [a_verdict(task, report, champion) for champion in (None, "c" * 64, "d" * 64)]
    for verdict in verdicts:
        ledger.save_verdict(verdict)
    assert ledger.verdicts(task.name, report.digest) == verdicts[::-1]


def test_of_two_records_of_a_snapshot_the_newest_comes_first(ledger: Ledger) -> None:
    first = a_snapshot(a_task())
    second = first.model_copy(update={"source_key": "another"})
    for snapshot in (first, second):
        ledger.save_snapshot(snapshot)
    assert snapshots(ledger, Name("mood", first.digest)) == [second, first]


@pytest.mark.parametrize(("figures", "shown"), [("open", "newest"), ("quiet", "judged")])
def test_people_see_the_report_that_a_quiet_verdict_was_decided_on(ledger: Ledger, figures: str, shown: str) -> None:
    """A newer one might show what the verdict withholds."""
    task = a_task()
    judged = a_report(an_artifact(task), 0.9)
    newest = judged.model_copy(update={"evaluation_key": "e" * 64, "rows": 40})
    ledger.save_verdict(a_verdict(task, judged, None).model_copy(update={"figures": figures}))
    for report in (judged, newest):
        ledger.save_report(report)
    assert ledger.disclosed(task.name, judged.digest).report == {"judged": judged, "newest": newest}[shown]


def test_a_refusal_is_told_with_its_version_and_with_what_is_in_production(ledger: Ledger) -> None:
    task = a_task()
    report = a_report(an_artifact(task), 0.5)
    ledger.add_version("mood", ONE)
    for alias, version in (("production", 1), ("canary", 1)):
        ledger.append(Move(task="mood", alias=alias, version=version, actor="me", reason="why", expected=0))
    ledger.add_version("mood", report.digest)
    take_due(ledger.database, "ops")
    ledger.append(Move(task="mood", alias="canary", version=2, actor="me", reason="why", expected=1))
    ledger.save_verdict(a_verdict(task, report, None, passed=False))
    told = []
    while event := take_due(ledger.database, "ops"):
        told.append(event)
    refusal = told[-1].record
    assert (told[-1].kind, refusal["from"], refusal["to"]) == ("gate_failed", 1, 2)


@pytest.mark.parametrize(
    ("days", "order"),
    [
        ((1, 1, 2), [("production", 1), ("production", 2), ("canary", 1)]),
        ((3, 1, 2), [("canary", 1), ("production", 1), ("production", 2)]),  # the clock was set back after the first
    ],
)
def test_a_history_of_all_aliases_is_in_order_of_time_and_each_in_order_of_number(
    ledger: Ledger, days: tuple[int, int, int], order: list[tuple[str, int]]
) -> None:
    ledger.add_version("mood", ONE)
    for alias, expected, day in zip(("production", "production", "canary"), (0, 1, 0), days, strict=True):
        at = f"2026-01-0{day}T00:00:00+00:00"
        ledger.append(Move(task="mood", alias=alias, version=1, actor="me", reason="why", expected=expected, at=at))
    assert [(row.alias, row.seq) for row in ledger.history("mood")] == order


def test_what_a_task_trained_last_does_not_depend_on_the_clock(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    first = a_request(a_task()).tuned
    second = first.model_copy(update={"training_key": "another"})
    for day, tuned in (("2026-02-02", first), ("2026-01-01", second)):
        monkeypatch.setattr(clock, "now", lambda day=day: f"{day}T00:00:00+00:00")
        ledger.save_tuned(tuned)
    assert ledger.last_tuned("mood") == second


def test_a_task_that_comes_to_the_verdict_that_it_had_was_judged_by_then(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = a_task()
    verdict = a_verdict(task, a_report(an_artifact(task), 0.9), None)
    for day in ("2026-01-01", "2026-02-02"):
        monkeypatch.setattr(clock, "now", lambda day=day: f"{day}T00:00:00+00:00")
        ledger.save_verdict(verdict)
    assert ledger.last_judged() == {"mood": "2026-02-02T00:00:00+00:00"}
    assert ledger.verdict_times("mood", verdict.digest) == {verdict.verdict_digest(): "2026-01-01T00:00:00+00:00"}


def test_a_verdict_is_the_newest_since_it_was_given_or_from_now_on(ledger: Ledger) -> None:
    task = a_task()
    report = a_report(an_artifact(task), 0.9)
    older, newer, other = (a_verdict(task, report, champion) for champion in (None, "c" * 64, "d" * 64))
    assert ledger.judging_time(older) is None
    ledger.save_verdict(older)
    assert ledger.judging_time(older) is None  # there is no other
    ledger.save_verdict(newer)
    newest_at = ledger.verdict_times("mood", report.digest)[newer.verdict_digest()]
    assert ledger.judging_time(newer) == newest_at
    for given in (older, other):
        at = ledger.judging_time(given)
        assert at is not None
        assert at > newest_at
