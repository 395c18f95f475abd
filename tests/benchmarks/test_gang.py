"""The gang's benchmark on the tiny base: what it prints, and that both sides compute the same."""

import pytest

from benchmarks.gang import main
from tests.benchmarks.conftest import Measure


def test_last_line_has_k_and_ratio(measure: Measure) -> None:
    figures = measure(main, "--members 3 --batch 2 --tokens 7 --prompt-length 5 --rounds 2")
    assert figures["k"] == 3
    assert figures["ratio"] == pytest.approx(figures["solo_s"] / figures["gang_s"])
    assert figures["grad_rel_err"] <= 1e-5
