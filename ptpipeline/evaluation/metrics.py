"""Metrics of answers: of predicted labels by scikit-learn, of generated texts in texts.py."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binned_statistic
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

from ptpipeline.evaluation.texts import measure_texts
from ptpipeline.records.reports import Metric, Reliability, Scores

BINS = 15  # of the reliability diagram, as in Guo et al. 2017


def measure(metric: Metric, truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> float:
    """Return one metric: of labels, or of texts.

    `macro_f1` is the unweighted mean over `labels` (0 for a label that is never right); `mcc` is Matthews' correlation
    (0 if all rows have one label, or get one).
    """
    if metric == "accuracy":
        return float(accuracy_score(truth, predicted))
    if metric == "macro_f1":
        return float(f1_score(truth, predicted, labels=list(labels), average="macro", zero_division=0))
    if metric == "mcc":
        return float(matthews_corrcoef(truth, predicted))
    return measure_texts(metric, truth, predicted)


def score_labels(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str], confidences: Sequence[float] | None = None
) -> Scores:
    """Return all metrics of predicted labels over the task's labels; `confidences` are their probabilities [rows]."""
    names = list(labels)
    bins = bin_by_confidence(truth, predicted, confidences) if confidences is not None else []
    columns = precision_recall_fscore_support(truth, predicted, labels=names, zero_division=0)
    per_label = {
        name: dict(zip(("precision", "recall", "f1", "support"), (float(column[i]) for column in columns), strict=True))
        for i, name in enumerate(names)
    }
    table: np.ndarray = confusion_matrix(truth, predicted, labels=names)  # [true, predicted]
    confusion = {true: {name: int(table[i, j]) for j, name in enumerate(names)} for i, true in enumerate(names)}
    counted = Counter(predicted)
    return Scores(
        accuracy=measure("accuracy", truth, predicted, names),
        macro_f1=measure("macro_f1", truth, predicted, names),
        per_label=per_label,
        confusion=confusion,
        predicted={name: counted[name] for name in names},
        mcc=measure("mcc", truth, predicted, names),
        calibration_error=calibration_error(bins) if bins else None,
        reliability=bins,
    )


def bin_by_confidence(
    truth: Sequence[str], predicted: Sequence[str], confidences: Sequence[float]
) -> list[Reliability]:
    """Return rows in BINS bins of equal width by their predicted label's probability, without empty bins.

    Rows whose probability is not finite are left out.
    """
    rows: NDArray[np.float64] = np.array(
        [
            (p, true == given, 1)
            for p, true, given in zip(confidences, truth, predicted, strict=True)
            if math.isfinite(p)
        ]
    )  # [rows, 3]: probability, whether it is right, and 1 to count by
    if not len(rows):
        return []
    sums = binned_statistic(rows[:, 0].clip(0, 1), rows.T, "sum", BINS, (0, 1)).statistic  # [3, BINS]
    return [
        Reliability(confidence=sure / count, accuracy=right / count, rows=int(count))
        for sure, right, count in sums.T.tolist()
        if count
    ]


def calibration_error(bins: Sequence[Reliability]) -> float:
    """Return the expected calibration error: the mean of |accuracy - confidence| over the bins, weighted by their rows.

    Source: Guo et al. 2017, equation 3.
    """
    return sum(abs(one.accuracy - one.confidence) * one.rows for one in bins) / sum(one.rows for one in bins)


def majority(train_labels: Mapping[str, int]) -> str:
    """Return the most frequent training label, or target; of equal ones the first in the alphabet."""
    return min(train_labels, key=lambda name: (-train_labels[name], name))
