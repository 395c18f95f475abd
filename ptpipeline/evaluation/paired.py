"""Challenger against another on the same test rows: one-sided tests by scipy, and intervals of a metric over the rows.

Letters: N rows, S resamples.

A metric that each row has by itself (right or wrong, a text's own score) is compared row by row: by the exact binomial
test on the rows that differ (McNemar 1947) if there is no margin and rows are right or wrong, else by Student's t
(1908). A metric of all rows together (macro F1, MCC) is compared by the normal distribution, with the larger standard
error of paired bootstrap (Efron and Tibshirani 1993, chapter 6) and paired permutation: a percentile of some thousand
resamples cannot show a chance of one in a million.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ptpipeline.records.reports import PairedDifference

RESAMPLES = 2000
SEED = 0
CONFIDENCE = 0.95  # of two-sided intervals

Codes = NDArray[np.int64]
Values = NDArray[np.float64]


class Hypothesis(NamedTuple):
    """What is tested: that the metric's difference is above `-margin`; it is bounded at a one-sided `confidence`."""

    metric: str
    confidence: float = 0.95
    margin: float = 0.0


def accuracy(truth: Codes, predicted: Codes, labels: int) -> Values:
    """Return scikit-learn's accuracy along the last axis, for many resamples at once: [..., N] -> [...]."""
    share: Values = np.mean(truth == predicted, axis=-1)
    return share


def macro_f1(truth: Codes, predicted: Codes, labels: int) -> Values:
    """Return scikit-learn's macro F1 along the last axis: [..., N] -> [...]; the F1 of a label that is nowhere is 0.

    F1 = 2 TP / (2 TP + FP + FN), where 2 TP + FP + FN counts the rows that are truly the label plus those predicted it.
    """
    total = np.zeros(np.broadcast_shapes(truth.shape, predicted.shape)[:-1])
    for label in range(labels):
        is_true, is_predicted = truth == label, predicted == label  # [..., N]
        hits = (is_true & is_predicted).sum(-1)  # [...]
        total = total + 2 * hits / np.maximum(is_true.sum(-1) + is_predicted.sum(-1), 1)
    mean: Values = total / labels
    return mean


def mcc(truth: Codes, predicted: Codes, labels: int) -> Values:
    """Return scikit-learn's matthews_corrcoef along the last axis: [..., N] -> [...]; 0 if either has one label only.

    Covariance over the root of both variances, each summed over the labels (Gorodkin 2004).
    """
    rows = truth.shape[-1]
    shape = np.broadcast_shapes(truth.shape, predicted.shape)[:-1]
    covariance, of_truth, of_predicted = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for label in range(labels):
        is_true, is_predicted = truth == label, predicted == label  # [..., N]
        true, given = is_true.sum(-1), is_predicted.sum(-1)  # [...]
        covariance = covariance + rows * (is_true & is_predicted).sum(-1) - true * given
        of_truth, of_predicted = of_truth + true * (rows - true), of_predicted + given * (rows - given)
    scale = np.sqrt(of_truth * of_predicted)
    coefficient: Values = np.divide(covariance, scale, out=np.zeros(shape), where=scale > 0)
    return coefficient


RESAMPLED: dict[str, Callable[[Codes, Codes, int], Values]] = {"accuracy": accuracy, "macro_f1": macro_f1, "mcc": mcc}
ROW_METRIC = "accuracy"  # the one metric that is a mean over rows


def interval(metric: str, truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> tuple[float, float]:
    """Return the two-sided 95% percentile interval of a metric of labels over test rows."""
    measure = RESAMPLED[metric]

    def statistic(t: Codes, p: Codes, axis: int = -1) -> Values:  # [S, N] -> [S]
        return measure(t, p, len(labels))

    return bootstrap_interval(encode_labels(labels, truth, predicted), statistic)


def difference(
    hypothesis: Hypothesis, truth: Sequence[str], challenger: Sequence[str], other: Sequence[str], labels: Sequence[str]
) -> PairedDifference:
    """Return challenger minus other by a metric of labels, on the same rows."""
    t, a, b = encode_labels(labels, truth, challenger, other)  # [N] each
    if hypothesis.metric == ROW_METRIC:
        return mean_difference(hypothesis, (a == t).astype(np.float64), (b == t).astype(np.float64))
    measure = RESAMPLED[hypothesis.metric]

    def statistic(truth: Codes, ours: Codes, theirs: Codes, axis: int = -1) -> Values:  # [S, N] -> [S]
        return measure(truth, ours, len(labels)) - measure(truth, theirs, len(labels))

    return _joint_difference(hypothesis, (t, a, b), statistic)


def mean_difference(
    hypothesis: Hypothesis, challenger: Sequence[float] | Values, other: Sequence[float] | Values
) -> PairedDifference:
    """Return challenger minus other [N] by a metric that every row has by itself: the mean of the rows' differences."""
    rows = _two_or_more(np.asarray(challenger, dtype=np.float64) - np.asarray(other, dtype=np.float64))
    above = _t_test(rows, -hypothesis.margin, "greater")
    low = above.confidence_interval(hypothesis.confidence).low
    high = _t_test(rows, 0, "less").confidence_interval(hypothesis.confidence).high
    test = _Test("paired t", float(above.pvalue))
    if hypothesis.margin == 0 and _is_right_or_wrong(rows):
        test = _Test("exact McNemar", _mcnemar(rows))
    return _paired_difference(hypothesis, _Estimate(float(rows.mean()), float(low), float(high)), rows, test)


def chance_of_harm(challenger: Values, champion: Values) -> float:
    """Return the one-sided p-value against the challenger's rows [N] being no worse than the champion's [N].

    The test is exact if rows are right or wrong.
    """
    rows = _two_or_more(champion - challenger)
    return _mcnemar(rows) if _is_right_or_wrong(rows) else float(_t_test(rows, 0, "greater").pvalue)


def bootstrap_interval(columns: Sequence[NDArray[Any]], statistic: Callable[..., Values]) -> tuple[float, float]:
    """Return the two-sided 95% percentile interval of `statistic(*columns, axis=-1)`, [S, N] a column -> [S].

    Each resample takes the same rows of every column. Raises ValueError if there are fewer than two rows.
    """
    bounds = _bootstrap(columns, statistic).confidence_interval
    return float(bounds.low), float(bounds.high)


def encode_labels(labels: Sequence[str], *columns: Sequence[str]) -> tuple[Codes, ...]:
    """Return each column of labels as its indexes [N] in `labels`."""
    index = {name: i for i, name in enumerate(labels)}
    return tuple(np.array([index[name] for name in column], dtype=np.int64) for column in columns)


def _t_test(rows: Values, mean: float, alternative: str) -> Any:
    """Student's one-sided t test that the mean of the rows' differences [N] lies above or below `mean`.

    Two rows that differ by 1 and by -1 are added: if few rows or none differ, the variance of the given rows is too
    small (Bonett and Price 2012, for paired proportions).
    """
    return stats.ttest_1samp(np.append(rows, (1.0, -1.0)), mean, alternative=alternative)


def _is_right_or_wrong(rows: Values) -> bool:
    return set(np.unique(rows)) <= {-1.0, 0.0, 1.0}


def _mcnemar(rows: Values) -> float:
    """Exact one-sided p of the rows that differ: those won are binomial with chance 1/2 if neither is better."""
    won, lost = int((rows > 0).sum()), int((rows < 0).sum())
    return float(stats.binomtest(won, won + lost, alternative="greater").pvalue) if won + lost else 1.0


def _joint_difference(
    hypothesis: Hypothesis, columns: tuple[Codes, Codes, Codes], statistic: Callable[..., Values]
) -> PairedDifference:
    """The difference of truth, challenger and other [N] each, with the larger standard error of bootstrap and
    permutation.

    If the few rows of a rare label all went one way, resampling cannot show that they might have gone another; and if
    no row differs, both errors are 0. So the error is at least that of one row won and one lost, sqrt(2) / N.
    """
    rows = (columns[1] == columns[0]).astype(np.float64) - (columns[2] == columns[0])
    center = float(statistic(*columns))
    bootstrap_error = float(_bootstrap(columns, statistic).standard_error)
    error = max(bootstrap_error, _permutation_error(columns, statistic), float(np.sqrt(2)) / len(rows))
    reach = float(stats.norm.ppf(hypothesis.confidence)) * error
    p_value = float(stats.norm.sf((center + hypothesis.margin) / error))
    estimate = _Estimate(center, center - reach, center + reach)
    return _paired_difference(hypothesis, estimate, rows, _Test("paired bootstrap", p_value))


def _permutation_error(columns: tuple[Codes, Codes, Codes], statistic: Callable[..., Values]) -> float:
    """The standard deviation of the difference if the two answers to each row change places by coin."""
    truth, ours, theirs = columns
    permuted = stats.permutation_test(
        (ours, theirs),
        lambda a, b, axis=-1: statistic(truth, a, b),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=200,
        rng=np.random.default_rng(SEED),
    )
    return float(permuted.null_distribution.std())


class _Estimate(NamedTuple):
    """A difference and its one-sided bounds."""

    center: float
    low: float
    high: float


class _Test(NamedTuple):
    """The name of a test and its p."""

    name: str
    p_value: float


def _paired_difference(hypothesis: Hypothesis, estimate: _Estimate, rows: Values, test: _Test) -> PairedDifference:
    return PairedDifference(
        metric=hypothesis.metric,
        difference=estimate.center,
        lower=estimate.low,
        upper=estimate.high,
        confidence=hypothesis.confidence,
        rows=len(rows),
        dropped=0,
        p_value=test.p_value,
        test=test.name,
        margin=hypothesis.margin,
        discordant=float((rows != 0).mean()),
    )


def _bootstrap(columns: Sequence[NDArray[Any]], statistic: Callable[..., Values]) -> Any:
    _two_or_more(columns[0])
    return stats.bootstrap(
        columns,
        statistic,
        n_resamples=RESAMPLES,
        batch=200,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )


def _two_or_more(rows: NDArray[Any]) -> NDArray[Any]:
    if len(rows) < 2:
        raise ValueError(f"an interval needs at least two test rows, found {len(rows)}; measure on more rows")
    return rows
