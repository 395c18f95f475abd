"""The benchmark of mixed batches on the tiny base: what it prints."""

from benchmarks.serve_mixed import main
from tests.benchmarks.conftest import Measure

RATIOS = {"mixed_over_single", "many_over_few", "over_bare", "over_peft_switching", "over_peft_prefill"}
SIDES = {"bare", "1", "8", "64", "8, long", "peft switching", "peft switching, long"}
SIDES |= {"few", "many", "many, half in memory"}


def test_last_line_holds_the_ratios_and_the_error(measure: Measure) -> None:
    figures = measure(main, "--tasks 20 --texts 32 --rounds 1 --tokens 12")
    assert figures.keys() >= RATIOS | {"max_logit_err", "memory_over_base", "tasks", "dtype", "machine"}
    assert set(figures["texts_per_s"]) == SIDES
    assert min(figures["texts_per_s"].values()) > 0
    assert all(figures[name] > 0 for name in RATIOS)
    assert 0 <= figures["max_logit_err"] <= 1e-4
    assert figures["half_computed"] > 0
