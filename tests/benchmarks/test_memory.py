"""The memory benchmark on the tiny base: what it prints, and that its sampling sees an allocation."""

import time

import numpy as np
import pytest

from benchmarks.memory import main, measure_peak
from tests.benchmarks.conftest import Measure


@pytest.mark.soak
def test_last_line_compares_both_sides(measure: Measure) -> None:
    figures = measure(main, "--batch 2 --tokens 7 --prompt-length 5")
    assert {"ours_mib", "peft_mib", "ratio", "dtype", "machine"} <= set(figures)


def test_a_block_of_memory_is_seen() -> None:
    def work() -> None:
        block = np.ones(64 * 2**20, dtype=np.uint8)
        time.sleep(0.05)
        del block

    assert 60 * 2**20 < measure_peak(work) < 90 * 2**20
