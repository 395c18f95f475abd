"""Challenger against another on the same test rows: one-sided tests by scipy, and intervals of a metric over the rows.

What each row has for itself (right or wrong, a text's own score) is compared row by row: without a margin and with
nothing but right and wrong by the exact binomial test on the rows that differ (McNemar), else by Student's t. A metric
of all rows together (macro F1, MCC) is compared by the larger standard error of paired bootstrap and paired permutation
and the normal distribution, because a percentile of some thousand resamples cannot show a chance of one in a million.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ptpipeline.records import PairedDifference

RESAMPLES = 2000
SEED = 0

Codes = NDArray[np.int64]
Values = NDArray[np.float64]


class Asked(NamedTuple):
    """What a test is asked: whether the difference is above `-margin`, and at which one-sided confidence it is
    bounded.
    """

    metric: str
    confidence: float = 0.95
    margin: float = 0.0


def accuracy(truth: Codes, predicted: Codes, labels: int) -> Values:
    """scikit-learn's accuracy along the last axis, for many resamples at once."""
    share: Values = np.mean(truth == predicted, axis=-1)
    return share


def macro_f1(truth: Codes, predicted: Codes, labels: int) -> Values:
    """scikit-learn's macro F1 along the last axis, for many resamples at once; 0 for a label that is nowhere."""
    total = np.zeros(np.broadcast_shapes(truth.shape, predicted.shape)[:-1])
    for label in range(labels):
        is_true, is_predicted = truth == label, predicted == label
        hits = (is_true & is_predicted).sum(-1)
        total = total + 2 * hits / np.maximum(is_true.sum(-1) + is_predicted.sum(-1), 1)
    mean: Values = total / labels
    return mean


def mcc(truth: Codes, predicted: Codes, labels: int) -> Values:
    """scikit-learn's matthews_corrcoef along the last axis, for many resamples at once; 0 where either has one label
    only.
    """
    rows = truth.shape[-1]
    shape = np.broadcast_shapes(truth.shape, predicted.shape)[:-1]
    covariance, of_truth, of_predicted = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for label in range(labels):
        is_true, is_predicted = truth == label, predicted == label
        true, found = is_true.sum(-1), is_predicted.sum(-1)
        covariance = covariance + rows * (is_true & is_predicted).sum(-1) - true * found
        of_truth, of_predicted = of_truth + true * (rows - true), of_predicted + found * (rows - found)
    scale = np.sqrt(of_truth.astype(np.float64) * of_predicted)
    coefficient: Values = np.divide(covariance, scale, out=np.zeros(shape), where=scale > 0)
    return coefficient


RESAMPLED: dict[str, Callable[[Codes, Codes, int], Values]] = {"accuracy": accuracy, "macro_f1": macro_f1, "mcc": mcc}
ROW_METRIC = "accuracy"  # what a single row can tell


def interval(
    metric: str, truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str], confidence: float = 0.95
) -> tuple[float, float]:
    """Two-sided percentile interval of a metric over test rows."""
    measure = RESAMPLED[metric]

    def statistic(t: Codes, p: Codes, axis: int = -1) -> Values:
        return measure(t, p, len(labels))

    return resampled(codes_of(labels, truth, predicted), statistic, confidence)


def difference(
    asked: Asked, truth: Sequence[str], challenger: Sequence[str], other: Sequence[str], labels: Sequence[str]
) -> PairedDifference:
    """Challenger minus other by a metric of labels, on the same rows."""
    t, a, b = codes_of(labels, truth, challenger, other)
    if asked.metric == ROW_METRIC:
        return mean_difference(asked, (a == t).astype(np.float64), (b == t).astype(np.float64))
    measure = RESAMPLED[asked.metric]

    def statistic(truth: Codes, ours: Codes, theirs: Codes, axis: int = -1) -> Values:
        return measure(truth, ours, len(labels)) - measure(truth, theirs, len(labels))

    return _together(asked, (t, a, b), statistic)


def mean_difference(
    asked: Asked, challenger: Sequence[float] | Values, other: Sequence[float] | Values
) -> PairedDifference:
    """Challenger minus other by a metric that every row has for itself: the mean of the rows' differences.

    Two rows that differ by 1 and by -1 are added for Student's t: where few or none differ, the variance of the rows at
    hand says too little (Bonett and Price 2012, for paired proportions).
    """
    rows = _two_or_more(np.asarray(challenger, dtype=np.float64) - np.asarray(other, dtype=np.float64))
    found = stats.ttest_1samp(np.append(rows, (1.0, -1.0)), -asked.margin, alternative="greater")
    bounds = (
        found.confidence_interval(asked.confidence).low,
        stats.ttest_1samp(np.append(rows, (1.0, -1.0)), 0, alternative="less")
        .confidence_interval(asked.confidence)
        .high,
    )
    p_value, test = float(found.pvalue), "paired t"
    if asked.margin == 0 and set(np.unique(rows)) <= {-1.0, 0.0, 1.0}:
        p_value, test = _mcnemar(rows), "exact McNemar"
    return _found(asked, (float(rows.mean()), float(bounds[0]), float(bounds[1])), rows, (p_value, test))


def chance_of_harm(challenger: Values, champion: Values) -> float:
    """One-sided p of the challenger's rows being no worse; exact where rows are right or wrong."""
    rows = _two_or_more(champion - challenger)
    if set(np.unique(rows)) <= {-1.0, 0.0, 1.0}:
        return _mcnemar(rows)
    return float(stats.ttest_1samp(np.append(rows, (1.0, -1.0)), 0, alternative="greater").pvalue)


def resampled(
    columns: Sequence[NDArray[Any]], statistic: Callable[..., Values], confidence: float
) -> tuple[float, float]:
    """Two-sided percentile interval of `statistic(*columns, axis=-1)` over resamples of the columns' rows, the same
    rows in each.

    Raises ValueError where there are fewer than two rows.
    """
    found = _bootstrap(columns, statistic, confidence).confidence_interval
    return float(found.low), float(found.high)


def codes_of(labels: Sequence[str], *columns: Sequence[str]) -> tuple[Codes, ...]:
    """Columns of labels as their indexes in `labels`."""
    index = {name: i for i, name in enumerate(labels)}
    return tuple(np.array([index[name] for name in column], dtype=np.int64) for column in columns)


def _mcnemar(rows: Values) -> float:
    won, lost = int((rows > 0).sum()), int((rows < 0).sum())
    return float(stats.binomtest(won, won + lost, alternative="greater").pvalue) if won + lost else 1.0


def _together(asked: Asked, columns: tuple[Codes, ...], statistic: Callable[..., Values]) -> PairedDifference:
    """By the bootstrap's standard error, or that of rows on which the two answers change places by coin, whichever is
    larger.

    Where the few rows of a rare label all went one way, resampling knows no other way they could have gone; and where
    no row differs both are 0, so the error is at least that of one row won and one lost.
    """
    rows = (columns[1] == columns[0]).astype(np.float64) - (columns[2] == columns[0])
    center = float(statistic(*columns))
    resampled_error = float(_bootstrap(columns, statistic, asked.confidence).standard_error)
    error = max(resampled_error, _swapped_error(columns, statistic), float(np.sqrt(2)) / len(rows))
    reach = float(stats.norm.ppf(asked.confidence)) * error
    p_value = float(stats.norm.sf((center + asked.margin) / error))
    return _found(asked, (center, center - reach, center + reach), rows, (p_value, "paired bootstrap"))


def _swapped_error(columns: tuple[Codes, ...], statistic: Callable[..., Values]) -> float:
    truth, ours, theirs = columns
    found = stats.permutation_test(
        (ours, theirs),
        lambda a, b, axis=-1: statistic(truth, a, b),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=200,
        rng=np.random.default_rng(SEED),
    )
    return float(found.null_distribution.std())


def _found(
    asked: Asked, placed: tuple[float, float, float], rows: Values, tested: tuple[float, str]
) -> PairedDifference:
    center, low, high = placed
    return PairedDifference(
        metric=asked.metric,
        difference=center,
        lower=low,
        upper=high,
        confidence=asked.confidence,
        rows=len(rows),
        dropped=0,
        p_value=tested[0],
        test=tested[1],
        margin=asked.margin,
        discordant=float((rows != 0).mean()),
    )


def _bootstrap(columns: Sequence[NDArray[Any]], statistic: Callable[..., Values], confidence: float) -> Any:
    _two_or_more(columns[0])
    return stats.bootstrap(
        columns,
        statistic,
        n_resamples=RESAMPLES,
        batch=200,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )


def _two_or_more(rows: NDArray[Any]) -> NDArray[Any]:
    if len(rows) < 2:
        raise ValueError(f"an interval needs at least two test rows, found {len(rows)}")
    return rows
