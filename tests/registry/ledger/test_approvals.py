"""Requests for approval as the ledger lists them, and what others are told of one."""

import time
from datetime import UTC, datetime

from ptpipeline.records.versions import PromptVersion
from registry.ledger.approvals import Asked, Decision, ask, list_standings, record_decision
from registry.ledger.events import take_due
from registry.ledger.ledger import Ledger, Move

AT = "2026-01-01T00:00:00+00:00"


def a_version(task: str, number: int) -> PromptVersion:
    digest = f"{number}" * 64
    return PromptVersion(task=task, number=number, digest=digest, verdict=None, passed=True, registered_at=AT)


def test_each_candidate_is_listed_once_by_its_newest_request_the_newest_first(ledger: Ledger) -> None:
    database = ledger.database
    for task, number, verdict in (("mood", 1, "a"), ("mood", 2, "a"), ("topic", 1, "a"), ("mood", 1, "b")):
        ask(database, Asked(a_version(task, number), verdict * 64, "carl", 1))
        time.sleep(0.002)  # SQLite tells the calendar to the millisecond
    listed = [(one.request.task, one.request.version, one.request.verdict[0]) for one in list_standings(database)]
    assert listed == [("mood", 1, "b"), ("topic", 1, "a"), ("mood", 2, "a")]
    assert [one.request.version for one in list_standings(database, "mood")] == [1, 2]


def test_decisions_stay_with_their_request_and_in_their_order(ledger: Ledger) -> None:
    first = ask(ledger.database, Asked(a_version("mood", 1), "a" * 64, "carl", 1)).request
    for actor in ("ann", "bob", "eve"):
        decision = Decision(approved=True, actor=actor, key=None, reason="why", at=AT)
        standing = record_decision(ledger.database, first, decision, lambda _: None)
    assert [row.actor for row in standing.decisions] == ["ann", "bob", "eve"]
    again = ask(ledger.database, Asked(a_version("mood", 1), "b" * 64, "dora", 1))
    assert (again.decisions, again.request.started_by) == ([], "carl")
    [listed] = list_standings(ledger.database)
    assert listed == again._replace(seconds_left=listed.seconds_left)


def test_others_are_told_from_which_version_to_which_and_until_when(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        ledger.add_version("mood", f"{number}" * 64)
    canary = [("canary", 1, expected) for expected in range(3)]
    for alias, version, expected in [("production", 1, 0), ("production", 2, 1), *canary]:
        ledger.append(Move(task="mood", alias=alias, version=version, actor="me", reason="why", expected=expected))
    request = ask(ledger.database, Asked(a_version("mood", 3), "a" * 64, "carl", 2)).request
    told = []
    while event := take_due(ledger.database, "ops"):
        told.append(event)
    record = told[-1].record
    assert (told[-1].kind, record["from"], record["to"], record["actor"]) == ("approval_wanted", 2, 3, "carl")
    assert record["expires"] == datetime.fromtimestamp(request.expires, UTC).isoformat(timespec="seconds")
    assert round(request.expires - request.asked) == 2 * 24 * 3600
