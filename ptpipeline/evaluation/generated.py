"""Generated texts measured against their targets; neither leaves this file: what is kept of a row is its metrics."""

from collections.abc import Sequence

from ptpipeline.evaluation.measurement import Measurement
from ptpipeline.evaluation.texts import TextRows, text_scores
from ptpipeline.records import TEXT_METRICS


def generated(targets: Sequence[str], answers: Sequence[str]) -> Measurement:
    """Each answer against its target."""
    rows = TextRows.of(targets, answers)
    return Measurement(
        scores=text_scores(rows, answers),
        interval={metric: rows.interval(metric) for metric in TEXT_METRICS},
        columns={metric: rows.values[metric].tolist() for metric in TEXT_METRICS},
    )
