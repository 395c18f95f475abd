"""The page of a version, and its description: complete, harmless whatever labels say, and without anything from
elsewhere.
"""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from benchmarks.fixtures.prompts import PNG, a_request, a_snapshot, a_task, an_artifact
from ptpipeline.evaluation.metrics import score_labels
from ptpipeline.prompts.interpretation import MEASURES, WARNING, NearTokens, Neighbour, Neighbours
from ptpipeline.records.prompts import Cost, Dropped, Trial
from ptpipeline.records.reports import PairedDifference, Scores, SliceDifference, TextScores
from ptpipeline.records.verdicts import Check, Look
from ptpipeline.records.versions import PromptVersion
from registry.card.card import Card, Provenance
from registry.card.description import render_description
from registry.card.page import render_page

HOSTILE = "<script>alert('x')</script>"
LABELS = ["bad", "good", HOSTILE]
CHECKS = [
    Check(name="minimum", passed=True, observed="accuracy 0.9", required="at least 0.8"),
    Check(name="champion", passed=False, observed="no better", required="better: p at most 0.003"),
    Check(name="robustness", passed=False, observed=f"31% & {HOSTILE}", required="at most 25%", policy="warn"),
]


class Parsed(HTMLParser):
    """What a browser would see: tags with attributes, and the text between them."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def pair(difference: float) -> PairedDifference:
    return PairedDifference(
        metric="accuracy",
        difference=difference,
        lower=difference - 0.1,
        upper=difference + 0.1,
        confidence=0.95,
        rows=18,
        dropped=2,
        p_value=0.25,
        test="exact McNemar",
    )


def measured(labels: list[str], right: int) -> Scores:
    """Of 60 rows so many right."""
    truth = [labels[i % len(labels)] for i in range(60)]
    wrong = [labels[(i + 1) % len(labels)] for i in range(60)]
    return score_labels(truth, [*truth[:right], *wrong[right:]], labels, [0.7] * 60)


def a_card(labels: list[str] = LABELS) -> Card:
    """A version of that many labels that was refused, with all that may be known of one."""
    task = a_task()
    artifact, request = an_artifact(task, 1), a_request(task, 1, "c" * 64)
    assert request.report
    assert request.verdict
    artifact = artifact._replace(
        manifest=artifact.manifest.model_copy(update={"labels": {name: f" {name}" for name in labels}})
    )
    report = request.report.model_copy(
        update={
            "rows": 60,
            "prompt": measured(labels, 48),
            "zero_shot": measured(labels, 30),
            "hard_prompt": measured(labels, 42),
            "majority": measured(labels, 0),
            "measures": {"robustness.case": 0.31},
        }
    )
    verdict = request.verdict.model_copy(
        update={
            "comparison": pair(0.1),
            "anchor": pair(0.05),
            "baselines": {"zero_shot": pair(0.3), "hard_prompt": pair(0.2)},
            "checks": CHECKS,
            "passed": False,
            "look": Look(test_set=1, number=3, alpha=0.0034, spent=0.0414, budget=0.05),
            "slices": [SliceDifference(name=f"label {name}", rows=20, difference=-0.1, p_harm=0.01) for name in labels],
            "measures": {"robustness.case": 0.31, "bytes.stored": float("nan")},
        }
    )
    near = NearTokens(
        nearest={
            measure: [Neighbour(id=1, token="▁Woman", value=0.5), Neighbour(id=2, token="<b>", value=0.4)]
            for measure in MEASURES
        },
        overlap={"cosine/dot": 0.5},
    )
    neighbours = Neighbours(k=2, tokens=[near] * 4, overlap={"cosine/dot": 0.5})
    return Card(
        artifact=artifact,
        provenance=Provenance(
            tuned=request.tuned,
            report=report,
            verdict=verdict,
            plots={"confusion": PNG, "differences": PNG + b"other"},
            commit="c0ffee",
            neighbours=neighbours,
        ),
        snapshot=a_snapshot(task),
        store="s3://bucket/some",
        champion=4,
    )


def altered(card: Card, **changes: Any) -> Card:
    """The card with other values, each in the record that holds it."""
    own = {name: value for name, value in changes.items() if hasattr(card, name)}
    held = {name: value for name, value in changes.items() if name not in own}
    return replace(card, provenance=replace(card.provenance, **held), **own)


NUMBERED = PromptVersion(
    task="mood", number=5, digest="d" * 64, verdict=None, passed=True, registered_at="2026-01-01T00:00:00+00:00"
)


@pytest.fixture(scope="module")
def card() -> Card:
    return a_card()


@pytest.fixture(scope="module")
def seen(card: Card) -> Parsed:
    return Parsed(render_page(card, NUMBERED))


# ---------------------------------------------------------------- the page


def test_every_check_stands_on_the_page_with_what_it_does(seen: Parsed) -> None:
    for check, mark, blocks in zip(
        CHECKS, ("✓ pass", "✗ FAIL", "⚠ warning"), ("blocks", "blocks", "warns"), strict=True
    ):
        assert f"{check.name} {mark} {check.observed} {check.required} {blocks}" in seen.text
    assert "failed the gate for champion" in seen.text
    assert "warned by robustness" in seen.text


@pytest.mark.parametrize(
    "words",
    [
        "look 3 at these test rows",
        "0.0414 of 0.05 together, 83%",
        "The champion is version 4.",
        "measured on rows that were looked at 2 times before",
        "champion +0.1000 +0.0000 to +0.2000 0.25 exact McNemar 18",
        "anchor +0.0500",
        "zero-shot +0.3000",
        "hard prompt +0.2000",
        "(2 here)",
        "metric this prompt 95% interval hard prompt zero-shot majority",
        "accuracy 0.8000 0.8000 to 1.0000 0.7000 0.5000 0.0000",
        "calibration error 0.1000",
        "robustness: case 0.31",
        "at virtual token 1, 2, 3, 4",
        WARNING,
        "rows.csv",
        "c0ffee",
        "80 train, 10 dev, 20 test",
        "s3://bucket/some/prompts/mood",
        "base model tiny, fingerprint " + "f" * 64,
    ],
)
def test_the_page_tells(seen: Parsed, words: str) -> None:
    assert words in seen.text


def test_hostile_labels_are_shown_as_text(seen: Parsed) -> None:
    assert seen.text.count(HOSTILE) >= 4
    assert {tag for tag, _ in seen.tags}.isdisjoint(
        {"script", "b", "iframe", "object", "link", "a", "form"}
    )  # <b> is one of the neighbours
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on")]


def test_nothing_comes_from_elsewhere(card: Card, seen: Parsed) -> None:
    addresses = [
        value or ""
        for _, attributes in seen.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"https?:|url\(|@import", render_page(card, NUMBERED).decode())
    assert {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    } in [attributes for tag, attributes in seen.tags if tag == "meta"]


def test_every_plot_is_inside(card: Card, seen: Parsed) -> None:
    inside = [
        base64.b64decode((attributes["src"] or "").partition(",")[2]) for tag, attributes in seen.tags if tag == "img"
    ]
    assert sorted(inside) == sorted(card.provenance.plots.values())


def test_the_same_records_make_the_same_page(card: Card) -> None:
    assert render_page(card, NUMBERED) == render_page(a_card(), NUMBERED)


def test_a_plot_of_another_name_is_shown_too(card: Card) -> None:
    assert Parsed(render_page(altered(card, plots={"curve-of-old": PNG}))).text.count("curve-of-old") == 1


def test_a_plot_of_other_scripts_has_the_key_of_its_numbers(card: Card) -> None:
    manifest = card.artifact.manifest.model_copy(update={"labels": {"나쁨": " a", "좋음": " b"}})
    foreign = replace(card, artifact=card.artifact._replace(manifest=manifest))
    assert "Numbers in the plot: 1. 나쁨, 2. 좋음" in Parsed(render_page(foreign)).text
    assert "Numbers in the plot" not in Parsed(render_page(card)).text


def test_a_prompt_that_was_never_judged_has_a_page(card: Card) -> None:
    text = Parsed(
        render_page(altered(card, report=None, verdict=None, plots={}, neighbours=None, snapshot=None, commit=None))
    ).text
    assert "not judged" in text
    assert "cannot go to production" in text
    assert "Nearest words" not in text


def test_a_first_version_had_the_baselines_to_beat(card: Card) -> None:
    assert card.provenance.verdict
    text = Parsed(
        render_page(
            altered(
                card,
                champion=None,
                verdict=card.provenance.verdict.model_copy(
                    update={"champion": None, "comparison": None, "anchor": None}
                ),
            )
        )
    ).text
    assert "There was no champion yet" in text
    assert "looked at 2 times" not in text


def test_the_spread_over_seeds_stands_beside_the_intervals(card: Card) -> None:
    """Of the recipe that has two seeds; one that failed, and one of a single seed, have no spread."""
    tried = [
        ("rate 0.1, seed 1", 0.70),
        ("rate 0.1, seed 2", 0.80),
        ("rate 0.1, seed 3", None),
        ("rate 0.2, seed 1", 0.9),
    ]
    trials = [
        Trial(name=f"mood/4 tokens, {name}", best_dev=dev, best_step=5, error=None if dev else "it diverged")
        for name, dev in tried
    ]
    searched = altered(card, tuned=card.provenance.tuned.model_copy(update={"trials": trials}))
    words = "2 seeds of 4 tokens, rate 0.1: dev 0.7500, standard deviation 0.0707, lowest 0.7000, highest 0.8000"
    assert words in Parsed(render_page(searched)).text
    assert "it diverged" in Parsed(render_page(searched)).text
    assert f"- {words}" in render_description(searched)
    assert "0.2: dev" not in render_description(searched)


def test_seeds_of_which_halving_chose_show_no_spread(card: Card) -> None:
    trials = [
        Trial(name=f"mood/4 tokens, rate 0.1, seed {seed}", best_dev=dev, best_step=5, dropped=dropped, cost=cost)
        for seed, dev, dropped, cost in (
            (1, 0.7, Dropped(step=5, dev=0.7, least=0.8), Cost(tokens=1200, seconds=1.25, processor_seconds=2.5)),
            (2, 0.8, None, Cost(tokens=3600, seconds=4.0, processor_seconds=8.0)),
            (3, 0.9, None, Cost(tokens=3600, seconds=4.0, processor_seconds=8.0)),
        )
    ]
    searched = altered(card, tuned=card.provenance.tuned.model_copy(update={"trials": trials, "rule": "halving: 2: 2"}))
    text = Parsed(render_page(searched)).text
    assert "Halving ended seeds early: how much a recipe varies with its seed is not known" in text
    assert "Trials ended early by halving: 2: 2." in text
    assert "dropped at step 5: dev 0.7000 is below 0.8000" in text
    assert "1,200" in text
    assert "standard deviation" not in text


def test_of_one_seed_it_is_said_that_the_spread_is_not_known(card: Card, seen: Parsed) -> None:
    assert "One seed was trained: how much the recipe varies with it is not known" in seen.text
    assert "- one seed was trained" in render_description(card)


def test_a_prefix_says_that_it_is_near_to_no_words(card: Card) -> None:
    assert (
        "None: keys and values."
        in Parsed(
            render_page(altered(card, neighbours=Neighbours(k=5, tokens=[], overlap={}, absent="keys and values")))
        ).text
    )


def test_generated_texts_have_their_own_metrics(card: Card) -> None:
    assert card.provenance.report
    texts = TextScores(exact_match=0.25, token_f1=0.5, rouge_l=0.75, bleu=0.125, most_frequent_share=0.0625)
    report = card.provenance.report.model_copy(
        update={"prompt": texts, "zero_shot": texts, "majority": texts, "hard_prompt": None, "interval": {}}
    )
    text = Parsed(render_page(altered(card, report=report, verdict=None))).text
    assert "ROUGE-L 0.7500 – 0.7500 0.7500" in text
    assert "commonest answer's share 0.0625" in text
    assert "By label" not in text
