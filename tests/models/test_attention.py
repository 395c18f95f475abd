"""Attention of short rows against torch's fused attention, with grouped heads, a prefix and pads."""

import copy

import pytest
import torch
from torch import Tensor

from ptpipeline.models.attention import MAX_KEYS, NAME, use_fused_attention, use_short_rows
from ptpipeline.models.base import prepare_folder
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.frozen import Input
from ptpipeline.models.load import load_base
from tests.tiny import tiny_base


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalBase, CausalBase]:
    """One tiny base in float32 twice: with this attention, and with the fused one."""
    folder = tiny_base(tmp_path_factory.mktemp("attention") / "base")
    prepared = prepare_folder("tiny", folder, folder)
    short = load_base(prepared, "bfloat16").to_float32()
    plain = CausalBase(copy.deepcopy(short.model), short.tokenizer, prepared.ref, torch.float32, short.context)
    plain.model.set_attn_implementation("sdpa")
    return short, plain


def _states_and_gradients(base: CausalBase, longest: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    prompts = [torch.randn(length, base.ref.hidden_size).requires_grad_() for length in (2, 5)]
    rows = [list(range(3, 3 + longest)), [7, 8, 9][:longest], [11]]
    states = base.compute_states(
        base.compute_prefix(prompts),
        [Input(row[:1], row[1:], member) for row, member in zip(rows, [0, 1, 1], strict=True)],
    )
    return states.detach(), *torch.autograd.grad(states.cos().sum(), prompts)


@pytest.mark.parametrize("longest", [1, 3, 8, 40])
def test_short_rows_equal_fused_attention(pair: tuple[CausalBase, CausalBase], longest: int) -> None:
    short, plain = (_states_and_gradients(base, longest) for base in pair)
    assert all(float((a - b).norm() / b.norm()) < 1e-5 for a, b in zip(short, plain, strict=True))


def test_long_rows_equal_fused_attention(pair: tuple[CausalBase, CausalBase], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptpipeline.models.attention.MAX_KEYS", 10)
    assert MAX_KEYS > 10
    short, plain = (_states_and_gradients(base, 20) for base in pair)
    assert all(float((a - b).norm() / b.norm()) < 1e-5 for a, b in zip(short, plain, strict=True))


def test_float32_models_keep_fused_attention(pair: tuple[CausalBase, CausalBase]) -> None:
    use_short_rows(pair[1].model)
    assert pair[1].model.config._attn_implementation == "sdpa"


def test_reference_runs_on_fused_attention(pair: tuple[CausalBase, CausalBase]) -> None:
    model = pair[0].model
    with use_fused_attention(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == NAME
