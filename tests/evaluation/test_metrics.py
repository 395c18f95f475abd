"""Metrics and intervals against scikit-learn and statistics known beforehand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ptpipeline.evaluation.metrics import bin_by_confidence, calibration_error, majority, measure, score_labels
from ptpipeline.evaluation.paired import RESAMPLED, Hypothesis, difference, interval
from ptpipeline.records.reports import Scores

LABELS = ("a", "b", "c")
columns = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40)


@given(columns)
def test_resampled_metrics_equal_scikit_learn(rows: list[tuple[str, str]]) -> None:
    truth, predicted = ([LABELS.index(row[i]) for row in rows] for i in (0, 1))
    arrays = np.array(truth), np.array(predicted)
    assert RESAMPLED["accuracy"](*arrays, 3) == pytest.approx(accuracy_score(truth, predicted))
    assert RESAMPLED["macro_f1"](*arrays, 3) == pytest.approx(
        f1_score(truth, predicted, labels=[0, 1, 2], average="macro", zero_division=0)
    )
    assert RESAMPLED["mcc"](*arrays, 3) == pytest.approx(matthews_corrcoef(truth, predicted))
    assert measure("mcc", [r[0] for r in rows], [r[1] for r in rows], LABELS) == pytest.approx(
        matthews_corrcoef(truth, predicted)
    )


def test_resamples_are_correlated_each_for_itself() -> None:
    dice = np.random.default_rng(1)
    truth, predicted = dice.integers(0, 3, (2, 50, 30))
    expected = [matthews_corrcoef(t, p) for t, p in zip(truth, predicted, strict=True)]
    assert RESAMPLED["mcc"](truth, predicted, 3) == pytest.approx(expected)


def test_very_many_rows_are_correlated_too() -> None:
    """Of 200,000 rows the product of both variances would be no integer of 64 bits."""
    truth, predicted = np.tile([0, 0, 1, 1], 50_000), np.tile([0, 0, 1, 0], 50_000)
    assert RESAMPLED["mcc"](truth, predicted, 2) == pytest.approx(matthews_corrcoef(truth[:4], predicted[:4]))


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=60))
def test_calibration_error_is_the_bins_own_sum(rows: list[tuple[bool, float]]) -> None:
    bins: dict[int, list[tuple[bool, float]]] = {}
    for right, sure in rows:
        bins.setdefault(int(np.searchsorted(np.linspace(0, 1, 16)[1:-1], sure, side="right")), []).append((right, sure))
    expected = sum(abs(sum(right - sure for right, sure in one)) for one in bins.values()) / len(rows)
    found = bin_by_confidence(
        ["a"] * len(rows), ["a" if right else "b" for right, _ in rows], [sure for _, sure in rows]
    )
    assert calibration_error(found) == pytest.approx(expected)
    assert [one.rows for one in found] == [len(bins[index]) for index in sorted(bins)]


def test_answers_that_are_as_right_as_sure_have_no_error() -> None:
    found = score_labels(["a"] * 4 + ["b"] * 4, ["a"] * 8, LABELS, [0.5] * 8)
    assert (found.calibration_error, found.reliability) == (0, [(0.5, 0.5, 8)])


def test_a_probability_that_is_none_stands_in_no_bin() -> None:
    found = score_labels(["a", "a", "b"], ["a", "a", "a"], LABELS, [0.5, float("nan"), 0.5])
    assert found.reliability == [(0.5, 0.5, 2)]
    assert score_labels(["a"], ["a"], LABELS, [float("nan")]).calibration_error is None


def test_a_probability_that_rounding_took_beyond_1_stands_in_the_last_bin() -> None:
    (found,) = bin_by_confidence(["a", "b"], ["a", "a"], [1 + 1e-7, 0.99])
    assert (found.rows, found.accuracy) == (2, 0.5)


def test_scores_that_were_stored_before_keep_their_form() -> None:
    before = {"accuracy": 0.5, "macro_f1": 0.5, "per_label": {}, "confusion": {}, "predicted": {}}
    assert Scores.model_validate(before).to_json() == before
    assert Scores.model_validate(before).figures() == {"accuracy": 0.5, "macro_f1": 0.5}


def test_scores_count_every_row() -> None:
    found = score_labels(["a", "a", "b", "c"], ["a", "b", "b", "b"], LABELS)
    assert found.accuracy == 0.5
    assert found.confusion == {
        "a": {"a": 1, "b": 1, "c": 0},
        "b": {"a": 0, "b": 1, "c": 0},
        "c": {"a": 0, "b": 1, "c": 0},
    }
    assert found.predicted == {"a": 1, "b": 3, "c": 0}
    assert found.per_label["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}


def test_a_label_that_is_nowhere_stays_in_the_mean() -> None:
    assert measure("macro_f1", ["a", "b"], ["a", "b"], LABELS) == pytest.approx(2 / 3)
    found = score_labels(["a", "b"], ["a", "b"], LABELS)
    assert found.macro_f1 == pytest.approx(2 / 3)
    assert found.per_label["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert found.predicted["c"] == found.confusion["c"]["c"] == 0


def test_majority_is_the_most_frequent_training_label() -> None:
    assert majority({"b": 3, "a": 3, "c": 1}) == "a"


def test_interval_is_about_two_standard_errors() -> None:
    truth, predicted = ["a"] * 400, ["a"] * 320 + ["b"] * 80
    low, high = interval("accuracy", truth, predicted, LABELS)
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.02, 0.8 + 1.96 * 0.02), abs=0.006)


def test_difference_is_paired() -> None:
    """Two prompts that err on the same rows differ by nothing, however noisy each is."""
    truth = ["a", "b"] * 100
    predicted = ["a", "a", "b", "b"] * 50
    found = difference(Hypothesis("accuracy"), truth, predicted, predicted, LABELS)
    assert (found.difference, found.discordant, found.p_value) == (0, 0, 1)


def test_difference_finds_the_better() -> None:
    truth = ["a"] * 200
    found = difference(Hypothesis("accuracy"), truth, ["a"] * 190 + ["b"] * 10, ["a"] * 150 + ["b"] * 50, LABELS)
    assert found.difference == pytest.approx(0.2)
    assert 0.14 < found.lower < 0.2 < found.upper < 0.26


def test_the_same_rows_give_the_same_interval() -> None:
    truth, predicted = ["a", "b", "c"] * 30, ["a", "c", "c"] * 30
    assert interval("macro_f1", truth, predicted, LABELS) == interval("macro_f1", truth, predicted, LABELS)
