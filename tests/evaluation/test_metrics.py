"""Metrics and intervals against scikit-learn and statistics known beforehand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from ptpipeline.evaluation.metrics import majority, scores
from ptpipeline.evaluation.paired import RESAMPLED, difference, interval

LABELS = ("a", "b", "c")
columns = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40)


@given(columns)
def test_resampled_metrics_equal_scikit_learn(rows: list[tuple[str, str]]) -> None:
    truth, predicted = ([LABELS.index(row[i]) for row in rows] for i in (0, 1))
    arrays = np.array(truth), np.array(predicted)
    assert RESAMPLED["accuracy"](*arrays, 3) == pytest.approx(accuracy_score(truth, predicted))
    assert RESAMPLED["macro_f1"](*arrays, 3) == pytest.approx(f1_score(truth, predicted, labels=[0, 1, 2], average="macro", zero_division=0))


def test_scores_count_every_row() -> None:
    found = scores(["a", "a", "b", "c"], ["a", "b", "b", "b"], LABELS)
    assert found.accuracy == 0.5
    assert found.confusion == {"a": {"a": 1, "b": 1, "c": 0}, "b": {"a": 0, "b": 1, "c": 0}, "c": {"a": 0, "b": 1, "c": 0}}
    assert found.predicted == {"a": 1, "b": 3, "c": 0}
    assert found.per_label["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}


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
    found = difference("accuracy", truth, predicted, predicted, LABELS, 0.95)
    assert (found.difference, found.lower, found.upper) == (0, 0, 0)


def test_difference_finds_the_better() -> None:
    truth = ["a"] * 200
    found = difference("accuracy", truth, ["a"] * 190 + ["b"] * 10, ["a"] * 150 + ["b"] * 50, LABELS, 0.95)
    assert found.difference == pytest.approx(0.2)
    assert 0.14 < found.lower < 0.2 < found.upper < 0.26


def test_the_same_rows_give_the_same_interval() -> None:
    truth, predicted = ["a", "b", "c"] * 30, ["a", "c", "c"] * 30
    assert interval("macro_f1", truth, predicted, LABELS) == interval("macro_f1", truth, predicted, LABELS)
