"""Ranked labels measured: the likeliest one of each row against the true one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ptpipeline.evaluation.measurement import Measurement
from ptpipeline.evaluation.metrics import scores
from ptpipeline.evaluation.paired import RESAMPLED, interval


def ranked(truth: Sequence[str], names: Sequence[str], ranking: Sequence[Tensor]) -> Measurement:
    """The likeliest of the labels `names` for each row, by the row's score of every label [labels]."""
    table = torch.stack(list(ranking)).double()
    predicted = [names[int(row.argmax())] for row in ranking]
    columns = {f"log_likelihood.{name}": table[:, index].tolist() for index, name in enumerate(names)}
    return labelled(truth, predicted, names, table.softmax(-1).amax(-1).tolist(), columns)


def labelled(
    truth: Sequence[str],
    predicted: Sequence[str],
    names: Sequence[str],
    confidences: Sequence[float] | None = None,
    columns: dict[str, list[float]] | None = None,
) -> Measurement:
    """Labels that were answered, with their probabilities where there are any, and more columns of the rows."""
    return Measurement(
        scores=scores(truth, predicted, names, confidences),
        interval={metric: interval(metric, truth, predicted, names) for metric in RESAMPLED},
        columns={"label": list(truth), "predicted": list(predicted), **(columns or {})},
    )
