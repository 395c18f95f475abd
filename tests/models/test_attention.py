"""Attention of short rows against torch's fused attention, with grouped heads, a prefix and pads."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ptpipeline.models.attention import NAME, use_fused_attention, use_short_rows
from ptpipeline.models.base import prepare_folder
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.frozen import Input
from ptpipeline.models.load import load_base
from tests.tiny import tiny_base


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalBase, CausalBase]:
    """One tiny base in float32 twice: with this attention, and with the fused one. Both run through transformers'
    layers, as a model does of which the passes by hand do not know all: those attend in their own way.
    """
    folder = tiny_base(tmp_path_factory.mktemp("attention") / "base")
    prepared = prepare_folder("tiny", folder, folder)
    short = load_base(prepared, "bfloat16").to_float32()
    plain = CausalBase(copy.deepcopy(short.model), short.tokenizer, prepared.ref, torch.float32, short.context)
    plain.model.set_attn_implementation("sdpa")
    for base in (short, plain):
        base.__dict__["fused"] = None
    return short, plain


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys each call of torch's fused attention had."""
    calls, attend = [], scaled_dot_product_attention

    def count(query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Tensor:
        calls.append(key.shape[2])
        return attend(query, key, *rest, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", count)
    return calls


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
def test_short_rows_equal_fused_attention(
    pair: tuple[CausalBase, CausalBase], longest: int, fused_calls: list[int]
) -> None:
    short = _states_and_gradients(pair[0], longest)
    assert not fused_calls
    plain = _states_and_gradients(pair[1], longest)
    assert fused_calls
    assert all(float((a - b).norm() / b.norm()) < 1e-5 for a, b in zip(short, plain, strict=True))


def test_long_rows_take_fused_attention(
    pair: tuple[CausalBase, CausalBase], fused_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 virtual tokens alone are few keys, 20 tokens behind them are many."""
    monkeypatch.setattr("ptpipeline.models.attention.MAX_KEYS", 10)
    short = _states_and_gradients(pair[0], 20)
    assert set(fused_calls) == {25}
    plain = _states_and_gradients(pair[1], 20)
    assert all(float((a - b).norm() / b.norm()) < 1e-5 for a, b in zip(short, plain, strict=True))


def test_float32_models_keep_fused_attention(pair: tuple[CausalBase, CausalBase]) -> None:
    use_short_rows(pair[1].model)
    assert pair[1].model.config._attn_implementation == "sdpa"


def test_reference_runs_on_fused_attention(pair: tuple[CausalBase, CausalBase]) -> None:
    model = pair[0].model
    with use_fused_attention(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == NAME
