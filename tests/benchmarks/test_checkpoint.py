"""The checkpoint benchmark on the tiny base: what it prints, and what it leaves behind."""

from pathlib import Path

import pytest

from benchmarks.checkpoint import main
from tests.benchmarks.conftest import Measure

KEYS = {"save_s", "bytes", "interval_s", "overhead", "step_s"}
PROVENANCE = {"batch", "tokens", "prompt_length", "rounds", "dtype", "base", "threads", "torch", "machine"}


def test_last_line_is_one_json_object_of_all_figures(measure: Measure, tmp_path: Path) -> None:
    figures = measure(main, "--batch 3 --tokens 7 --prompt-length 5 --rounds 2")
    assert set(figures) == KEYS | PROVENANCE
    assert all(figures[key] > 0 for key in KEYS)
    assert figures["overhead"] == pytest.approx(figures["save_s"] / figures["interval_s"])
    assert (
        3 * 4 * 5 * 64 < figures["bytes"] < 40_000
    )  # parameters and AdamW's two moments [P, H] in float32, and a curve
    assert not list((tmp_path / "store").rglob("*.safetensors"))
