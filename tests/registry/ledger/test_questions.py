"""What garbage collection, lineage, repair and projections ask the ledger, on each database."""

import time

import pytest

from benchmarks.fixtures.prompts import a_request, a_task
from ptpipeline.errors import LeaseHeld
from ptpipeline.records.base import now
from ptpipeline.records.prompts import Trial
from ptpipeline.records.versions import PromptVersion
from registry.card.card import Provenance
from registry.ledger.holdings import holdings
from registry.ledger.lease import Lease, expired_leases, leased, remove_expired_leases
from registry.ledger.ledger import Intent, Ledger, Move
from registry.ledger.probe import last_probe, record_probe
from registry.ledger.projections import (
    Alias,
    Projection,
    applied_projections,
    end_attempt,
    forget_sighting,
    is_attempted,
    note_attempt,
    sight,
)
from registry.ledger.recovery import RecoveredPrompt, Recovery, recover_task
from registry.ledger.results import Publication
from registry.ledger.tombstone import Tombstone
from registry.ledger.usage import (
    Name,
    SnapshotLink,
    Training,
    prompt_uses,
    registrations,
    rows_keys,
    snapshot_links,
    tasks_with,
)

DIGEST = "a" * 64


def a_move(version: int = 1, expected: int = 0) -> Move:
    return Move(task="mood", alias="production", version=version, actor="me", reason="why", expected=expected)


def publish(ledger: Ledger, request: Provenance) -> Publication:
    """Save the request's records as a publish does; its training had two trials."""
    trials = [Trial(name=name, best_dev=0.5, best_step=1) for name in ("mood/topic", "mood/tone")]
    publication = Publication(tuned=request.tuned.model_copy(update={"trials": trials}), commit=None, plots={})
    ledger.add_version("mood", request.tuned.digest, request.verdict)
    ledger.save_publication(publication, request.report)
    return publication


def test_registrations_say_how_a_version_was_trained(ledger: Ledger) -> None:
    tuned = publish(ledger, a_request(a_task())).tuned
    name = Name("mood", tuned.digest)
    assert Tombstone(ledger.database, *name).bury(lambda _: False)
    found = registrations(ledger)
    assert found.versions == {name: 1}
    assert found.trainings == [Training(name, tuned.snapshot, ["mood/topic", "mood/tone"], tuned.steps)]
    assert found.tombstones == {name}
    assert tasks_with(ledger, tuned.digest) == ["mood"]


def test_links_name_the_snapshots_of_trainings_and_evaluations(ledger: Ledger) -> None:
    request = a_request(a_task())
    tuned, report = publish(ledger, request).tuned, request.report
    assert report is not None
    name = Name("mood", tuned.digest)
    assert sorted(snapshot_links(ledger)) == [SnapshotLink(name, report.snapshot), SnapshotLink(name, tuned.snapshot)]
    assert rows_keys(ledger, "mood") == {tuned.digest: [report.rows_key]}
    assert rows_keys(ledger, "topic") == {}


def test_uses_name_what_was_promoted_and_what_is_being_published(ledger: Ledger) -> None:
    for digest in (DIGEST, "b" * 64):
        ledger.add_version("mood", digest)
    ledger.append(a_move())
    ledger.intend("mood", "c" * 64)
    ledger.intend("topic", DIGEST)
    with ledger.database.reading() as connection:
        uses = prompt_uses(connection, "mood")
    assert uses.promoted == {Name("mood", DIGEST)}
    assert [use.name for use in uses.intents] == [Name("mood", "c" * 64)]
    assert sorted(uses.versions) == [("mood", 1), ("mood", 2)]


def test_holdings_are_of_one_task(ledger: Ledger) -> None:
    request = a_request(a_task())
    publish(ledger, request)
    ledger.add_version("topic", DIGEST)
    promotion = ledger.append(a_move())
    ledger.intend("mood", DIGEST)
    assert request.verdict is not None
    verdict, found = request.verdict.verdict_digest(), holdings(ledger, "mood")
    assert (found.versions, found.history) == ({1: request.tuned.digest}, {"production": [promotion]})
    assert (found.verdicts, found.passed) == ({verdict: request.tuned.digest}, {verdict})
    assert (found.published, set(found.intents), found.tombstones) == ({request.tuned.digest}, {DIGEST}, set())


def test_a_recovered_collected_version_keeps_its_mark(ledger: Ledger) -> None:
    request, at = a_request(a_task()), now()
    publication = Publication(tuned=request.tuned, commit=None, plots={}, mistakes="texts")
    prompt = RecoveredPrompt(publication, request.report, request.verdict, [], at, at)
    version = PromptVersion(
        task="mood", number=3, digest=DIGEST, verdict=None, passed=None, registered_at=at, collected=True
    )
    recover_task(ledger, Recovery("mood", [prompt], [version], [], [Intent(task="mood", digest="b" * 64, at=at)]))
    assert ledger.version("mood", 3) == version
    assert [intent.digest for intent in ledger.intents()] == ["b" * 64]
    assert ledger.latest_verdict("mood", request.tuned.digest) == request.verdict
    assert ledger.publication("mood", request.tuned.digest) == publication.model_copy(update={"mistakes": None})


def test_a_lease_that_nobody_gave_back_is_listed_and_removed(ledger: Ledger) -> None:
    Lease(ledger.database, "project mood@production", 0.01).renew()
    with leased(ledger.database, "project topic@production", 30):
        time.sleep(0.05)
        assert [lease.name for lease in expired_leases(ledger.database)] == ["project mood@production"]
        assert remove_expired_leases(ledger.database) == 1
        assert expired_leases(ledger.database) == []


def test_a_probe_is_remembered_per_store(ledger: Ledger) -> None:
    assert last_probe(ledger.database, "s3://one").at is None
    record_probe(ledger.database, "s3://one", 5.0)
    assert last_probe(ledger.database, "s3://one").at == 5.0
    assert last_probe(ledger.database, "s3://two").at is None


def test_an_attempt_is_under_way_until_it_ends(ledger: Ledger) -> None:
    ledger.add_version("mood", DIGEST)
    head = ledger.append(a_move())
    with leased(ledger.database, "project mood@production", 30) as lease:
        first, second = (note_attempt(ledger, lease, head) for _ in range(2))
        end_attempt(ledger, lease, head, second, late=None)
        assert is_attempted(ledger, head, DIGEST)
        end_attempt(ledger, lease, head, second, late=DIGEST)
        assert not is_attempted(ledger, head, DIGEST)
    with pytest.raises(LeaseHeld):
        end_attempt(ledger, lease, head, first, late=None)


def test_an_edit_is_sighted_from_its_first_look_on(ledger: Ledger) -> None:
    ledger.add_version("mood", DIGEST)
    head = ledger.append(a_move())
    ledger.record_applied("store", head)
    assert sight(ledger, head, "b" * 64) == 0
    time.sleep(0.01)
    assert sight(ledger, head, "b" * 64) > 0
    assert sight(ledger, head, "c" * 64) == 0
    known = applied_projections(ledger)
    assert known.applied == {Projection("store", "mood", "production"): 1}
    assert known.sighted == {Alias("mood", "production")}
    forget_sighting(ledger, head)
    assert applied_projections(ledger).sighted == set()
