"""What a card says in a sentence, and which tags MLflow is given of it."""

from dataclasses import replace
from typing import Any

import pytest

from ptpipeline.records.versions import Beside
from registry.card.card import (
    MAX_TAG,
    Card,
    Naming,
    alias_tags,
    describe_naming,
    describe_outcome,
    selection_bias,
)
from registry.card.description import MAX_NAMINGS, render_description
from registry.card.page import render_page
from tests.registry.card.test_page import NUMBERED, Parsed, altered, card
from tests.registry.versions.test_history import row

__all__ = ["card"]  # a fixture
CANARY = Beside(version=2, digest="2" * 64, percent=10)
OVERRIDE = CANARY.model_copy(update={"override": True})


@pytest.mark.parametrize(
    ("naming", "told"),
    [
        (Naming(row(1, 1)), "since 2026-01-01 00:00 UTC, by me, because: why"),
        (Naming(row(1, 1, override=True)), "since 2026-01-01 00:00 UTC, by me against the gate, because: why"),
        (
            Naming(row(1, 1), row(2, 2, actor="bob", reason="worse")),
            "2026-01-01 00:00 UTC to 2026-01-02 00:00 UTC, by me, because: why; then version 2, by bob: worse",
        ),
        (
            Naming(row(2, 1), None, CANARY),
            "canary at 10% beside version 1 since 2026-01-02 00:00 UTC, by me, because: why",
        ),
        (
            Naming(row(2, 1, override=True), None, CANARY),  # the other version is what overrides the gate
            "canary at 10% beside version 1 since 2026-01-02 00:00 UTC, by me, because: why",
        ),
        (
            Naming(row(2, 1), None, OVERRIDE),
            "canary at 10% beside version 1 since 2026-01-02 00:00 UTC, by me against the gate, because: why",
        ),
        (
            Naming(row(2, 1), row(3, 1, actor="bob"), CANARY.model_copy(update={"percent": 0})),
            "shadow beside version 1 2026-01-02 00:00 UTC to 2026-01-03 00:00 UTC, by me, because: why; ended by "
            "bob: why",
        ),
    ],
)
def test_a_naming_is_told_with_who_began_and_who_ended_it(naming: Naming, told: str) -> None:
    assert describe_naming(naming) == told


def test_tags_tell_what_names_the_version_now_and_are_cut() -> None:
    long = row(3, 1, alias="staging", reason="x" * MAX_TAG)
    tags = alias_tags([Naming(row(1, 1), row(2, 2)), Naming(long)])
    assert [*tags] == ["ptp.alias.staging"]
    assert len(tags["ptp.alias.staging"]) == MAX_TAG


@pytest.mark.parametrize(("passed", "told"), [(None, "none"), (True, "passed"), (False, "failed")])
def test_an_outcome_is_one_word(passed: bool | None, told: str) -> None:
    assert describe_outcome(passed) == told


def looked(card: Card, number: int, **comparison: Any) -> str | None:
    """What is said of the champion's figure if this was look `number`."""
    verdict = card.provenance.verdict
    assert verdict is not None
    assert verdict.look is not None
    assert verdict.comparison is not None
    changes = {
        "look": verdict.look.model_copy(update={"number": number}),
        "comparison": verdict.comparison.model_copy(update=comparison),
    }
    return selection_bias(altered(card, verdict=verdict.model_copy(update=changes)))


def test_a_champion_that_was_chosen_on_these_rows_is_said_to_look_better_than_it_is(card: Card) -> None:
    assert looked(card, 1) is None
    assert "the champion's accuracy of about 0.700 was measured on rows that were looked at once" in str(
        looked(card, 2)
    )
    assert "looked at 2 times before" in str(looked(card, 3))
    assert "the champion's BLEU was measured" in str(looked(card, 2, metric="bleu"))  # which do not subtract
    assert selection_bias(altered(card, verdict=None)) is None
    assert selection_bias(altered(card, report=None)) is None


def test_a_withheld_verdict_has_no_tag_of_its_digest(card: Card) -> None:
    verdict = card.provenance.verdict
    assert verdict is not None
    assert card.tags()["ptp.verdict_digest"] == verdict.verdict_digest()
    quiet = altered(card, verdict=verdict.model_copy(update={"figures": "quiet"}))
    assert "ptp.verdict_digest" not in quiet.tags()
    assert quiet.tags()["ptp.verdict"] == "failed"


def test_tags_of_aliases_and_of_the_number_are_those_of_a_version(card: Card) -> None:
    named = replace(card, namings=[Naming(row(1, 1))])
    assert "ptp.alias.production" not in named.tags()
    assert named.tags(NUMBERED)["ptp.version"] == "5"
    assert named.tags(NUMBERED)["ptp.alias.production"].startswith("since 2026-01-01")


# ---------------------------------------------------------------- in the description


@pytest.mark.parametrize(
    ("naming", "heading"),
    [
        (Naming(row(1, 1)), "### In production"),
        (Naming(row(1, 1), row(2, 2)), "### Aliases"),
        (Naming(row(1, 1), None, CANARY), "### Aliases"),
        (Naming(row(1, 1, alias="staging")), "### Aliases"),
    ],
)
def test_only_what_production_itself_names_now_is_in_production(card: Card, naming: Naming, heading: str) -> None:
    lines = render_description(replace(card, namings=[naming]), NUMBERED).splitlines()
    assert [line for line in lines if line in ("### In production", "### Aliases")] == [heading]


def test_what_names_it_now_comes_before_what_did_and_the_oldest_are_left_out(card: Card) -> None:
    past = [Naming(row(seq, 1), row(seq + 1, 2)) for seq in range(2, 12, 2)]
    lines = render_description(replace(card, namings=[Naming(row(1, 1, alias="first")), *past]), NUMBERED).splitlines()
    assert len([line for line in lines if line.startswith("- **production**")]) == MAX_NAMINGS
    assert not any(line.startswith("- **first**") for line in lines)
    newest = replace(card, namings=[Naming(row(1, 1, alias="now")), *past[1:]])
    told = [line for line in render_description(newest, NUMBERED).splitlines() if line.startswith("- **")]
    assert [line[4:8] for line in told] == ["now*", *["prod"] * (MAX_NAMINGS - 1)]
    assert "since" in told[0]
    assert "2026-01-10 00:00 UTC to 2026-01-11 00:00 UTC" in told[1]


def test_a_champion_that_is_no_version_any_more_is_told_by_its_digest(card: Card) -> None:
    assert "against the champion `cccccccccccc`:" in render_description(replace(card, champion=None), NUMBERED)


# ---------------------------------------------------------------- on the page


def test_measures_of_the_verdict_stand_on_the_page_else_those_of_the_report(card: Card) -> None:
    verdict = card.provenance.verdict
    assert verdict is not None
    other = altered(card, verdict=verdict.model_copy(update={"measures": {"odd": 0.77}}))
    shown = Parsed(render_page(other)).text
    assert ("odd 0.77" in shown, "robustness: case 0.31" in shown) == (True, False)
    none = altered(card, verdict=verdict.model_copy(update={"measures": {}}))
    assert "robustness: case 0.31" in Parsed(render_page(none)).text


def test_virtual_tokens_near_a_sensitive_term_are_counted_from_one(card: Card) -> None:
    hints = [line for line in Parsed(render_page(card)).text.split("▁") if "oman" in line]
    assert any("1, 2, 3, 4" in line for line in hints)
