"""Which dossiers of a prompt are missing, and when the verdict in each became the newest."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks.fixtures.prompts import a_request, an_artifact, published
from ptpipeline.records.verdicts import Verdict
from ptpipeline.task.task import Task
from registry.card.card import Provenance
from registry.ledger.results import Publication
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.versions import publish
from registry.versions.dossier import lost_dossiers


def known(registry: Registry, task: Task) -> tuple[Publication, Verdict]:
    """How version 1 was made, and the verdict on it."""
    published(registry, task, 1)
    publication = registry.ledger.publication(task.name, an_artifact(task, 1).digest)
    verdict = a_request(task, 1).verdict
    assert publication is not None
    assert verdict is not None
    return publication, verdict


def test_the_dossier_of_the_only_verdict_is_as_old_as_its_object(plain: Registry, task: Task) -> None:
    publication, verdict = known(plain, task)
    (dossier,) = lost_dossiers(plain.ledger, publication, set())
    assert (dossier.verdict, dossier.judged_at) == (verdict, None)
    assert lost_dossiers(plain.ledger, publication, {verdict.verdict_digest()}) == []


def test_a_dossier_that_a_newer_one_follows_says_when_its_verdict_was_given(plain: Registry, task: Task) -> None:
    publication, verdict = known(plain, task)
    newest = verdict.model_copy(update={"gate_key": "b" * 64})  # the ledger does not know it yet
    (dossier,) = lost_dossiers(plain.ledger, publication, set(), newest)
    times = plain.ledger.verdict_times(task.name, verdict.digest)
    assert (dossier.verdict, dossier.judged_at) == (verdict, times[verdict.verdict_digest()])


def test_the_newest_verdict_is_not_lost_before_it_is_written(plain: Registry, task: Task) -> None:
    publication, verdict = known(plain, task)
    assert lost_dossiers(plain.ledger, publication, set(), verdict) == []


@pytest.mark.parametrize("keep", [publish.keep_verdict, publish.register])
def test_two_runs_that_judge_one_prompt_leave_ledger_and_store_in_one_order(
    plain: Registry, task: Task, keep: Callable[[Registry, Provenance], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one tells the store first and the ledger last."""
    _, verdict = known(plain, task)
    slower, faster = (
        replace(a_request(task, 1), verdict=verdict.model_copy(update={"gate_key": letter * 64})) for letter in "ab"
    )
    remember = publish.remember

    def stand_still(registry: Registry, provenance: Provenance) -> object:
        told = remember(registry, provenance)
        monkeypatch.undo()
        keep(registry, faster)
        return told

    monkeypatch.setattr(publish, "remember", stand_still)
    keep(plain, slower)
    assert examine(plain) == []
    assert plain.ledger.latest_verdict(task.name, verdict.digest) == faster.verdict
