"""Metrics of answers: of predicted labels by scikit-learn, of generated texts in texts.py."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from ptpipeline.evaluation.texts import measure_texts
from ptpipeline.records import Metric, Scores


def measure(metric: Metric, truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> float:
    """One metric: the share of rows that were right, the unweighted mean of the labels' F1 (0 where never predicted), or one of texts."""
    if metric == "accuracy":
        return float(accuracy_score(truth, predicted))
    if metric == "macro_f1":
        return float(f1_score(truth, predicted, labels=list(labels), average="macro", zero_division=0))
    return measure_texts(metric, truth, predicted)


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


def majority(train_labels: Mapping[str, int]) -> str:
    """The most frequent training label, or target; ties go to the first in the alphabet."""
    return min(train_labels, key=lambda name: (-train_labels[name], name))
