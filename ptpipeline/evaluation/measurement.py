"""What was measured on the test rows, by label ranking or by generation, before it becomes a report."""

from typing import Any, NamedTuple

from ptpipeline.records import Scores, TextScores


class Measurement(NamedTuple):
    """Scores of a prompt and its two baselines, intervals of the prompt's metrics, and columns of results per test row."""

    prompt: Scores | TextScores
    zero_shot: Scores | TextScores
    majority: Scores | TextScores
    interval: dict[str, tuple[float, float]]
    columns: dict[str, list[Any]]
