"""What MLflow is given of a version: a description that fits, and its metrics."""

import pytest
from mlflow.utils.validation import _validate_metric_name

from ptpipeline.records.verdicts import Check
from registry.card.card import Card
from registry.card.description import MAX_DESCRIPTION, render_description
from tests.registry.card.test_page import CHECKS, LABELS, NUMBERED, a_card, altered, card, measured

__all__ = ["card"]  # a fixture


def test_the_description_tells_all_baselines_and_the_budget(card: Card) -> None:
    lines = render_description(card, NUMBERED).splitlines()
    assert "- accuracy: **0.800** (0.800 to 1.000); hard prompt 0.700, zero-shot 0.500, majority 0.000" in lines
    assert (
        "- against the champion version 4: accuracy **+0.100** (+0.000 to +0.200 at 95%, p 0.25 by exact "
        "McNemar, 18 rows)" in lines
    )
    assert any("looked at 2 times before" in line for line in lines)
    assert "### Verdict: failed, 1 warning" in lines
    assert r"- ⚠ robustness: 31% &amp; &lt;script>alert('x')&lt;/script>, required at most 25%" in lines
    assert "- look 3 at these test rows: it may err with a chance of 0.0034, 0.041 of 0.050 is spent" in lines


def test_a_description_of_a_hundred_labels_fits_in_whole_lines() -> None:
    labels = [f"a label with quite a long name, {i}" for i in range(100)]
    card = a_card(labels)
    assert card.provenance.verdict
    long = Check(
        name="never", passed=False, observed="never answered: " + ", ".join(labels), required="all", policy="warn"
    )
    found = render_description(
        altered(card, verdict=card.provenance.verdict.model_copy(update={"checks": [*CHECKS, *[long] * 3]})), NUMBERED
    )
    assert len(found) <= MAX_DESCRIPTION
    assert "### Made from" in found
    assert "report.html" in found.splitlines()[-1]
    crowded = render_description(
        altered(card, verdict=card.provenance.verdict.model_copy(update={"checks": [*CHECKS, *[long] * 30]})), NUMBERED
    )
    assert MAX_DESCRIPTION - 500 < len(crowded) <= MAX_DESCRIPTION
    assert crowded.splitlines()[-1].endswith("…")


def test_metrics_are_finite_under_names_that_mlflow_takes(card: Card) -> None:
    found = card.metrics()
    assert {
        name: found[name]
        for name in ("accuracy", "hard_prompt_accuracy", "zero_shot_mcc", "majority_accuracy", "robustness.case")
    } == pytest.approx(
        {
            "accuracy": 0.8,
            "hard_prompt_accuracy": 0.7,
            "zero_shot_mcc": measured(LABELS, 30).mcc,
            "majority_accuracy": 0.0,
            "robustness.case": 0.31,
        }
    )
    assert found["calibration_error"] == pytest.approx(0.1)
    assert "bytes.stored" not in found  # it was no number
    for name in found:
        _validate_metric_name(name)
