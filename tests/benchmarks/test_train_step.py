"""The training step's benchmark on the tiny base: what it prints, and the FLOPs that it counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_step import count_needed_flops, main, make_our_step, make_workload
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.load import load_base
from ptpipeline.settings import load_settings
from tests.benchmarks.conftest import Measure

KEYS = {"ours_s", "peft_s", "ratio", "grad_rel_err", "tokens_per_s", "peak_gflops", "mfu"}
PROVENANCE = {
    "dtype", "batch", "tokens", "prompt_length", "rounds", "base", "threads", "torch", "peft", "machine",
    "architecture", "path",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.train_step.SQUARE", 64)


@pytest.fixture
def base(measure: Measure) -> FrozenBase:
    """The tiny base, which `measure` declares."""
    return load_base(prepare_base("tiny", load_settings()), "float32")


def test_last_line_is_one_json_object_of_all_figures(measure: Measure) -> None:
    figures = measure(main, "--batch 3 --tokens 7 --prompt-length 5 --rounds 2")
    assert set(figures) == KEYS | PROVENANCE
    assert all(figures[key] > 0 for key in KEYS)
    assert figures["ratio"] == pytest.approx(figures["peft_s"] / figures["ours_s"])


def test_float32_gradient_equals_pefts(measure: Measure) -> None:
    assert measure(main, "--batch 3 --tokens 7 --prompt-length 5 --rounds 1")["grad_rel_err"] <= 1e-5


@pytest.mark.parametrize(("batch", "tokens", "prompt_length"), [(2, 20, 1), (3, 9, 12), (8, 30, 60)])
def test_needed_flops_never_exceed_those_done(base: FrozenBase, batch: int, tokens: int, prompt_length: int) -> None:
    step = make_our_step(base, make_workload(base, batch, tokens, prompt_length))
    with (
        FlopCounterMode(display=False) as counter,
        torch.backends.mkldnn.flags(enabled=False),
    ):  # oneDNN's products are not counted
        step()
    needed = count_needed_flops(base, batch=batch, tokens=tokens, prompt_length=prompt_length)
    assert 0.4 < needed / counter.get_total_flops() <= 1  # two layers: the last one's saving weighs half
