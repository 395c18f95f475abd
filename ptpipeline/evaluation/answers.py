"""Answers measured against the true ones: labels that were ranked or given, and generated texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ptpipeline.evaluation.measurement import Measurement
from ptpipeline.evaluation.metrics import score_labels
from ptpipeline.evaluation.paired import RESAMPLED, interval
from ptpipeline.evaluation.texts import TextRows, score_texts
from ptpipeline.records.reports import TEXT_METRICS


def measure_rankings(truth: Sequence[str], names: Sequence[str], rankings: Sequence[Tensor]) -> Measurement:
    """Measure the likeliest of the labels `names` for each row, given the row's score of every label [labels]."""
    table = torch.stack(list(rankings)).double()  # [rows, labels]
    predicted = [names[int(row.argmax())] for row in rankings]
    columns = {f"log_likelihood.{name}": table[:, index].tolist() for index, name in enumerate(names)}
    confidences = table.softmax(-1).amax(-1).tolist()  # [rows, labels] -> [rows]
    return measure_labels(truth, predicted, names, confidences, columns)


def measure_labels(
    truth: Sequence[str],
    predicted: Sequence[str],
    names: Sequence[str],
    confidences: Sequence[float] | None = None,
    columns: dict[str, list[float]] | None = None,
) -> Measurement:
    """Measure predicted labels, with their probabilities if there are any, and keep further `columns` of the rows."""
    return Measurement(
        scores=score_labels(truth, predicted, names, confidences),
        interval={metric: interval(metric, truth, predicted, names) for metric in RESAMPLED},
        columns={"label": list(truth), "predicted": list(predicted), **(columns or {})},
    )


def measure_generated(targets: Sequence[str], answers: Sequence[str]) -> Measurement:
    """Measure each generated text against its target; the columns hold metrics alone, neither text."""
    rows = TextRows.of(targets, answers)
    return Measurement(
        scores=score_texts(rows, answers),
        interval={metric: rows.interval(metric) for metric in TEXT_METRICS},
        columns={metric: rows.values[metric].tolist() for metric in TEXT_METRICS},
        texts=answers,
    )
