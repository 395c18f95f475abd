"""What a ledger lost, decided from records alone: which passed verdicts count, and what names a version."""

import pytest

from ptpipeline.records.versions import Promotion
from registry.ledger.holdings import Holdings
from registry.repair.contents import Contents
from registry.repair.losses import find_losses

ONE, OTHER, VERDICT = "1" * 64, "2" * 64, "a" * 64


def a_row(digest: str = ONE) -> Promotion:
    """The first promotion of production, by that verdict."""
    fields = {"task": "mood", "alias": "production", "seq": 1, "version": 1, "digest": digest, "previous": None}
    return Promotion.model_validate(
        fields | {"actor": "me", "reason": "why", "verdict": VERDICT, "at": "2026-01-01T00:00:00+00:00"}
    )


def the_store(names: dict[int, str], row: Promotion) -> Contents:
    return Contents(names, {"production": [row]}, pointers={}, dossiers={}, times={}, refused=[])


def the_ledger(verdicts: dict[str, str], passed: set[str]) -> Holdings:
    """A ledger that knows version 1 and these verdicts, and lost its history."""
    return Holdings({1: ONE}, {}, verdicts, passed, published={ONE}, intents={}, tombstones=set())


@pytest.mark.parametrize(
    ("verdicts", "passed", "taken"),
    [
        ({VERDICT: ONE}, {VERDICT}, True),
        ({VERDICT: ONE}, set(), False),
        ({VERDICT: OTHER}, {VERDICT}, False),
        ({}, {VERDICT}, False),
    ],
)
def test_a_passed_verdict_that_the_ledger_alone_holds_proves_a_promotion(
    verdicts: dict[str, str], passed: set[str], taken: bool
) -> None:
    losses = find_losses("mood", the_store({1: ONE}, a_row()), the_ledger(verdicts, passed), {}, {})
    assert (losses.promotions == [a_row()], len(losses.refused)) == (taken, 0 if taken else 1)


def test_a_version_is_what_its_name_says_and_without_a_name_what_a_promotion_cites() -> None:
    assert the_store({1: ONE}, a_row(OTHER)).stated_versions() == {1: ONE}
    assert the_store({}, a_row(OTHER)).stated_versions() == {1: OTHER}
