"""Metrics of predicted labels, by scikit-learn."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from ptpipeline.records import Scores


def measure(metric: Literal["accuracy", "macro_f1"], truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> float:
    """One metric: the share of rows that were right, or the unweighted mean of the labels' F1 (0 where never predicted)."""
    if metric == "accuracy":
        return float(accuracy_score(truth, predicted))
    return float(f1_score(truth, predicted, labels=list(labels), average="macro", zero_division=0))


def scores(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Scores:
    """All metrics of one set of predictions over the task's labels."""
    names = list(labels)
    columns = precision_recall_fscore_support(truth, predicted, labels=names, zero_division=0)
    per_label = {
        name: dict(zip(("precision", "recall", "f1", "support"), (float(column[i]) for column in columns), strict=True))
        for i, name in enumerate(names)
    }
    table: np.ndarray = confusion_matrix(truth, predicted, labels=names)
    confusion = {true: {name: int(table[i, j]) for j, name in enumerate(names)} for i, true in enumerate(names)}
    counted = Counter(predicted)
    return Scores(
        accuracy=measure("accuracy", truth, predicted, names),
        macro_f1=measure("macro_f1", truth, predicted, names),
        per_label=per_label,
        confusion=confusion,
        predicted={name: counted[name] for name in names},
    )


def majority(train_labels: dict[str, int]) -> str:
    """The most frequent training label; ties go to the first in the alphabet."""
    return min(train_labels, key=lambda name: (-train_labels[name], name))
