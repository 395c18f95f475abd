"""Intervals over test rows by scipy's paired bootstrap: of one metric, and of challenger minus champion."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from ptpipeline.records import PairedDifference

RESAMPLES = 2000
SEED = 0

Codes = NDArray[np.int64]


def accuracy(truth: Codes, predicted: Codes, labels: int) -> NDArray[np.float64]:
    """scikit-learn's accuracy along the last axis, for many resamples at once."""
    share: NDArray[np.float64] = np.mean(truth == predicted, axis=-1)
    return share


def macro_f1(truth: Codes, predicted: Codes, labels: int) -> NDArray[np.float64]:
    """scikit-learn's macro F1 along the last axis, for many resamples at once; 0 for a label that is nowhere."""
    total = np.zeros(np.broadcast_shapes(truth.shape, predicted.shape)[:-1])
    for label in range(labels):
        is_true, is_predicted = truth == label, predicted == label
        hits = (is_true & is_predicted).sum(-1)
        total = total + 2 * hits / np.maximum(is_true.sum(-1) + is_predicted.sum(-1), 1)
    mean: NDArray[np.float64] = total / labels
    return mean


RESAMPLED: dict[str, Callable[[Codes, Codes, int], NDArray[np.float64]]] = {"accuracy": accuracy, "macro_f1": macro_f1}


def interval(metric: str, truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str], confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided percentile interval of a metric over test rows."""
    measure = RESAMPLED[metric]

    def statistic(t: Codes, p: Codes, axis: int = -1) -> NDArray[np.float64]:
        return measure(t, p, len(labels))

    return resampled(_codes(labels, truth, predicted), statistic, confidence)


def difference(
    metric: str, truth: Sequence[str], challenger: Sequence[str], champion: Sequence[str], labels: Sequence[str], confidence: float
) -> PairedDifference:
    """Challenger minus champion on the same rows; `lower` holds with one-sided `confidence`, and so does `upper`."""
    measure = RESAMPLED[metric]
    codes = _codes(labels, truth, challenger, champion)

    def statistic(t: Codes, a: Codes, b: Codes, axis: int = -1) -> NDArray[np.float64]:
        return measure(t, a, len(labels)) - measure(t, b, len(labels))

    lower, upper = resampled(codes, statistic, 2 * confidence - 1)
    t, a, b = codes
    return PairedDifference(
        metric=metric, difference=float(statistic(t, a, b)), lower=lower, upper=upper, confidence=confidence, rows=len(truth), dropped=0
    )


def _codes(labels: Sequence[str], *columns: Sequence[str]) -> tuple[Codes, ...]:
    index = {name: i for i, name in enumerate(labels)}
    return tuple(np.array([index[name] for name in column], dtype=np.int64) for column in columns)


def mean_difference(metric: str, challenger: Sequence[float], champion: Sequence[float], confidence: float) -> PairedDifference:
    """The same of a metric that every row has for itself: the mean of challenger minus champion, row by row."""
    columns = (np.array(challenger) - np.array(champion),)
    lower, upper = resampled(columns, np.mean, 2 * confidence - 1)
    return PairedDifference(
        metric=metric, difference=float(columns[0].mean()), lower=lower, upper=upper, confidence=confidence, rows=len(columns[0]), dropped=0
    )


def resampled(codes: Sequence[NDArray[Any]], statistic: Callable[..., NDArray[np.float64]], confidence: float) -> tuple[float, float]:
    """Two-sided percentile interval of `statistic(*columns, axis=-1)` over resamples of the columns' rows, the same rows in each.

    Raises ValueError where there are fewer than two rows.
    """
    if len(codes[0]) < 2:
        raise ValueError(f"an interval needs at least two test rows, found {len(codes[0])}")
    found = bootstrap(
        codes, statistic, n_resamples=RESAMPLES, batch=200, paired=True, vectorized=True,
        confidence_level=confidence, method="percentile", rng=np.random.default_rng(SEED),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)
