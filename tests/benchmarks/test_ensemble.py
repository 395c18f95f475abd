"""The ensemble's benchmark on the tiny base: what it prints."""

import pytest

from benchmarks.ensemble import main
from tests.benchmarks.conftest import Measure


def test_last_line_has_n_and_ratio(measure: Measure) -> None:
    figures = measure(main, "--members 3 --tokens 7 --prompt-length 5 --rounds 2")
    assert figures["n"] == 3
    assert figures["ratio"] == pytest.approx(figures["ensemble_s"] / figures["one_s"])
