"""The search's benchmark on the tiny base: what it prints."""

import pytest

from benchmarks.search import main
from tests.benchmarks.conftest import Measure


def test_last_line_has_ratio_and_winner(measure: Measure) -> None:
    figures = measure(main, "--task tiny-sentiment --repetitions 1 --timed 1 --steps 8 --eval-every 4 --halving 2")
    assert figures["trials"] == 24
    assert figures["ratio"] == pytest.approx(figures["solo_s"] / figures["search_s"])
    assert figures["gang_ratio"] == pytest.approx(figures["solo_s"] / figures["gang_s"])
    assert figures["step_ratio"] >= 1
    assert {figures["winner"], figures["within"]} <= {0.0, 1.0}
