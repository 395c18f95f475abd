"""Each check of a measure: every limit blocks by itself, and the limit itself passes."""

from typing import Any

import pytest

from ptpipeline.gate.checks import CHECKS, Result
from ptpipeline.records.reports import Report, Scores, TextScores
from ptpipeline.task import policy
from tests.gate.test_decide import report
from tests.tuning.jobs import declared

TEXTS = TextScores(exact_match=0.5, token_f1=0.5, rouge_l=0.5, bleu=0.5, most_frequent_share=0.98)


def judge(name: str, rule: policy.Rule, predicted: dict[str, int] | None = None, **measures: float) -> Result | None:
    """The result of one check on 100 rows, 50 of each label."""
    return CHECKS[name].judge(rule, report(predicted=predicted), {f"{name}.{key}": v for key, v in measures.items()})


def passes(name: str, rule: policy.Rule, predicted: dict[str, int] | None = None, **measures: float) -> bool:
    result = judge(name, rule, predicted, **measures)
    assert result is not None
    return result.passed


# ---------------------------------------------------------------- collapse, never


@pytest.mark.parametrize(("max_share", "expected"), [(0.9, True), (0.89, False)])
def test_a_frequent_label_is_a_collapse_above_its_limit(max_share: float, expected: bool) -> None:
    rule = policy.Collapse(max_share=max_share, min_entropy=0)
    assert passes("collapse", rule, {"no": 90, "yes": 10}) is expected


@pytest.mark.parametrize(("min_entropy", "expected"), [(0.46, True), (0.47, False)])
def test_low_entropy_is_a_collapse_though_no_label_is_too_frequent(min_entropy: float, expected: bool) -> None:
    rule = policy.Collapse(max_share=0.98, min_entropy=min_entropy)
    assert passes("collapse", rule, {"no": 90, "yes": 10}) is expected  # of .469 bits, and the true labels of 1 bit


def test_answers_as_varied_as_the_true_labels_are_no_collapse() -> None:
    assert passes("collapse", policy.Collapse(max_share=0.46, min_entropy=1), {"no": 50, "yes": 50})


def test_entropy_is_told_in_bits() -> None:
    result = judge("collapse", policy.Collapse(), {"no": 90, "yes": 10})
    assert result is not None
    assert result.observed.endswith("are 'no'; their entropy is 0.47 bits, the true labels' 1.00")


def test_entropy_is_held_against_that_of_the_true_labels() -> None:
    scores = report(predicted={"no": 99, "yes": 1}).prompt
    rare = scores.model_copy(update={"confusion": {"no": {"no": 99, "yes": 0}, "yes": {"no": 0, "yes": 1}}})
    measured = report().model_copy(update={"prompt": rare})
    result = CHECKS["collapse"].judge(policy.Collapse(max_share=0.5, min_entropy=1), measured, {})
    assert result is not None
    assert result.passed  # both shares and entropies are equal


@pytest.mark.parametrize(("max_share", "expected"), [(0.98, True), (0.97, False)])
def test_the_same_text_may_be_as_frequent_as_its_limit(max_share: float, expected: bool) -> None:
    measured = report().model_copy(update={"prompt": TEXTS})
    result = CHECKS["collapse"].judge(policy.Collapse(max_share=max_share), measured, {})
    assert result is not None
    assert result.passed is expected


@pytest.mark.parametrize(("min_rows", "expected"), [(50, False), (51, True)])
def test_a_label_needs_as_many_rows_as_the_policy_says_to_be_missed(min_rows: int, expected: bool) -> None:
    assert passes("never", policy.Never(min_rows=min_rows), {"no": 100, "yes": 0}) is expected


def test_a_label_that_is_answered_once_is_not_missed() -> None:
    assert passes("never", policy.Never(min_rows=1), {"no": 99, "yes": 1})


def test_free_texts_have_no_label_to_miss() -> None:
    assert CHECKS["never"].judge(policy.Never(), report().model_copy(update={"prompt": TEXTS}), {}) is None


def with_f1(**scores: float) -> Report:
    """A report on 100 rows, 50 of each label, with these F1."""
    measured = report()
    assert isinstance(measured.prompt, Scores)
    per_label = {name: {"precision": f1, "recall": f1, "f1": f1} for name, f1 in scores.items()}
    return measured.model_copy(update={"prompt": measured.prompt.model_copy(update={"per_label": per_label})})


@pytest.mark.parametrize(("f1", "passed"), [(0.1, True), (0.09, False), (0.0, False)])
def test_the_worst_label_may_be_as_bad_as_its_limit(f1: float, passed: bool) -> None:
    result = CHECKS["worst_label"].judge(policy.WorstLabel(), with_f1(no=0.9, yes=f1), {})
    assert result is not None
    assert result.passed is passed
    assert result.observed.startswith(f"the lowest F1 is {f1:.4f}, of 'yes' (50 rows); {1 - passed} of 2 labels")


@pytest.mark.parametrize(("min_rows", "passed"), [(50, False), (51, True)])
def test_a_label_with_few_rows_is_not_the_worst(min_rows: int, passed: bool) -> None:
    result = CHECKS["worst_label"].judge(policy.WorstLabel(min_rows=min_rows), with_f1(no=0.9, yes=0.0), {})
    assert result is not None
    assert result.passed is passed


def test_if_no_label_has_enough_rows_none_is_the_worst() -> None:
    result = CHECKS["worst_label"].judge(policy.WorstLabel(min_rows=51), with_f1(no=0.0, yes=0.0), {})
    assert result == Result(True, "no label has 51 test rows")


def test_the_worst_label_is_that_of_the_lowest_f1_whatever_it_is_called() -> None:
    result = CHECKS["worst_label"].judge(policy.WorstLabel(), with_f1(no=0.2, yes=0.9), {})
    assert result is not None
    assert "the lowest F1 is 0.2000, of 'no'" in result.observed


def test_free_texts_have_no_worst_label() -> None:
    assert CHECKS["worst_label"].judge(policy.WorstLabel(), report().model_copy(update={"prompt": TEXTS}), {}) is None


# ---------------------------------------------------------------- one case a limit


@pytest.mark.parametrize(
    ("name", "rule", "measures", "expected"),
    [
        ("leakage", policy.Leakage(max_share=0.1, max_near_share=0.2), {"exact": 0.1, "near": 0.2}, True),
        ("leakage", policy.Leakage(max_share=0.1, max_near_share=0.2), {"exact": 0.11, "near": 0.2}, False),
        ("leakage", policy.Leakage(max_share=0.1, max_near_share=0.2), {"exact": 0.1, "near": 0.21}, False),
        ("drift", policy.Drift(max_labels=0.1), {"labels": 0.1}, True),
        ("drift", policy.Drift(max_labels=0.1), {"labels": 0.11}, False),
        ("drift", policy.Drift(max_length=0.1), {"labels": 0, "length": 0.1}, True),
        ("drift", policy.Drift(max_length=0.1), {"labels": 0, "length": 0.11}, False),
        ("drift", policy.Drift(max_vocabulary=0.1), {"vocabulary": 0.1}, True),
        ("drift", policy.Drift(max_vocabulary=0.1), {"vocabulary": 0.11, "labels": 0}, False),
        ("latency", policy.Latency(max_ratio=2, max_ms=50), {"p50_ms": 50, "ratio": 2}, True),
        ("latency", policy.Latency(max_ratio=2, max_ms=50), {"p50_ms": 51, "ratio": 2}, False),
        ("latency", policy.Latency(max_ratio=2, max_ms=50), {"p50_ms": 50, "ratio": 2.1}, False),
        ("latency", policy.Latency(max_ratio=2), {"p50_ms": 9999, "ratio": 2}, True),
        ("latency", policy.Latency(max_ratio=2), {"p50_ms": 1, "ratio": 2.1}, False),
        ("norms", policy.Norms(max_ratio=20), {"max_ratio": 20}, True),
        ("norms", policy.Norms(max_ratio=20), {"max_ratio": 20.1}, False),
        ("robustness", policy.Robustness(max_white_space=0.2, max_case=0.3), {"white_space": 0.2, "case": 0.3}, True),
        ("robustness", policy.Robustness(max_white_space=0.2, max_case=0.3), {"white_space": 0.21, "case": 0.3}, False),
        ("robustness", policy.Robustness(max_white_space=0.2, max_case=0.3), {"white_space": 0.2, "case": 0.31}, False),
        ("privacy", policy.Privacy(max_auc=0.65), {"auc": 0.9, "low": 0.65, "high": 0.95}, True),
        ("privacy", policy.Privacy(max_auc=0.65), {"auc": 0.9, "low": 0.66, "high": 0.95}, False),
        ("bytes", policy.Bytes(), {"stored": 100, "limit": 100}, True),
        ("bytes", policy.Bytes(), {"stored": 101, "limit": 100}, False),
    ],
)
def test_every_limit_blocks_alone_and_may_be_reached(
    name: str, rule: policy.Rule, measures: dict[str, Any], expected: bool
) -> None:
    assert passes(name, rule, **measures) is expected


@pytest.mark.parametrize(
    ("rows", "flips", "expected"), [(10, 0.1, True), (10, 0.11, False), (9, 0.9, True), (11, 0.11, False)]
)
def test_bias_is_judged_from_the_fewest_rows_on(rows: int, flips: float, expected: bool) -> None:
    rule = policy.Bias(swaps=(("he", "she"),), max_flips=0.1, min_rows=10)
    assert passes("bias", rule, rows=rows, flips=flips) is expected


@pytest.mark.parametrize("name", ["leakage", "drift", "latency", "norms", "robustness", "privacy"])
def test_what_was_not_measured_is_not_judged(name: str) -> None:
    assert judge(name, getattr(policy.Checks(), name)) is None


def test_bias_without_pairs_is_not_judged() -> None:
    assert judge("bias", policy.Bias(), rows=100, flips=1) is None


def test_bias_without_measures_has_too_few_rows() -> None:
    assert passes("bias", policy.Bias(swaps=(("he", "she"),)))


def test_unknown_training_rows_are_said_to_be_unknown() -> None:
    result = judge("leakage", policy.Leakage(), unknown=1, exact=1, near=1)
    assert result is not None
    assert (result.passed, result.observed.split(",")[0]) == (True, "not known")


def test_rows_that_nearly_stand_in_the_training_rows_are_told_by_field() -> None:
    rule = policy.Leakage(fields=("premise", "claim"))
    result = judge("leakage", rule, exact=0, near=0, **{"field.premise": 0.25, "field.claim": 0.5})
    assert result is not None
    assert result.observed.endswith("0.00% with near duplicates (25.00% by premise, 50.00% by claim)")


@pytest.mark.parametrize(
    ("name", "rule", "part"),
    [
        ("leakage", policy.Leakage(fields=("premise", "claim")), "duplicates, also in premise or claim alone, count"),
        ("leakage", policy.Leakage(), "if near duplicates count"),
        ("worst_label", policy.WorstLabel(min_rows=1), "at least 1 test row has"),
        ("worst_label", policy.WorstLabel(min_rows=2), "at least 2 test rows has"),
        (
            "latency",
            policy.Latency(max_ratio=2, max_ms=50),
            "at most 2 times the time without a prompt and at most 50 ms",
        ),
        ("latency", policy.Latency(max_ratio=2, max_ms=0.5), "without a prompt and at most 0.5 ms"),
        ("bias", policy.Bias(), "the task names no pairs (gate.checks.bias.swaps)"),
        ("bias", policy.Bias(swaps=(("he", "she"),), min_rows=7), "if at least 7 rows have a term of the 1 pairs"),
    ],
)
def test_a_requirement_names_each_of_its_limits(name: str, rule: policy.Rule, part: str) -> None:
    assert part in CHECKS[name].ask(declared("movies"), rule)


def test_rows_that_ancestors_saw_are_named_and_do_not_block() -> None:
    result = judge("leakage", policy.Leakage(), exact=0, near=0, inherited=0.25)
    assert result is not None
    assert result.passed
    assert "its ancestors saw 25.00%" in result.observed
