"""The benchmark of an evaluation's phases on the tiny base: what it prints."""

import pytest

from benchmarks.evaluation import main
from tests.benchmarks.conftest import Measure

PHASES = ("test", "zero_shot", "hard_prompt", "robustness", "swaps", "membership", "norms", "latency", "dev")
PROVENANCE = {"dtype", "base", "threads", "torch", "machine"}


def test_last_line_holds_the_rate_of_every_phase(measure: Measure) -> None:
    figures = measure(main, "--task tiny-sentiment --rows 20")
    assert set(figures) == {"task", "phases", "seconds", "processor_s", "test_tokens", "answers"} | PROVENANCE
    assert tuple(figures["phases"]) == PHASES
    assert figures["phases"]["test"]["rows"] == sum(figures["answers"].values()) == 20
    for phase in figures["phases"].values():
        assert phase["rows_per_s"] == pytest.approx(phase["rows"] / phase["seconds"])
    assert sum(phase["share"] for phase in figures["phases"].values()) == pytest.approx(1)
