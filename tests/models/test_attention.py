"""Attention of short rows against torch's fused attention, with grouped heads, a prefix and pads."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ptpipeline.models.attention import NAME, attend, use_fused_attention, use_short_rows
from ptpipeline.models.base import prepare_folder
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.inputs import Input
from ptpipeline.models.load import load_base
from ptpipeline.models.operands import LayerKeyValues
from ptpipeline.models.scores import attend_step
from tests.models.families import family
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
    calls, fused = [], scaled_dot_product_attention

    def count(query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Tensor:
        calls.append(key.shape[2])
        return fused(query, key, *rest, **options)

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


MODULE = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=False)


def short_rows(keys: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries [1, 4, 3, 8], keys and values [1, 2, S, 8], and a mask [1, 1, 3, S] that hides the last key."""
    torch.manual_seed(0)
    mask = torch.zeros(1, 1, 3, keys)
    mask[..., -1] = -torch.inf
    return torch.randn(1, 4, 3, 8), torch.randn(1, 2, keys, 8), torch.randn(1, 2, keys, 8), mask


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_scores_are_scaled_as_the_model_says_or_by_the_width_of_a_head(scaling: float | None) -> None:
    query, key, value, mask = short_rows(5)
    found, _ = attend(MODULE, query, key, value, mask, scaling=scaling)
    every = (tensor.repeat_interleave(2, 1) for tensor in (key, value))
    torch.testing.assert_close(
        found.transpose(1, 2), scaled_dot_product_attention(query, *every, attn_mask=mask, scale=scaling)
    )


@pytest.mark.parametrize(
    ("keys", "options", "fused"),
    [(10, {}, []), (11, {}, [11]), (5, {"dropout": 0.5}, [5]), (5, {"position_bias": torch.ones(1, 4, 3, 5)}, [5])],
)
def test_only_plain_attention_of_at_most_so_many_keys_is_computed_here(
    keys: int, options: dict[str, Any], fused: list[int], fused_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptpipeline.models.attention.MAX_KEYS", 10)
    attend(MODULE, *short_rows(keys), **options)
    assert fused_calls == fused


def test_scores_of_bfloat16_are_weighed_in_float32() -> None:
    """Scores of 100 to 103 times .3, of which bfloat16 would round two."""
    query, keys = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 4, 8)
    query[..., 0], keys[..., 0] = 1, torch.arange(100, 104)
    values, mask = torch.eye(4, 8)[None, None], torch.zeros(1, 1, 1, 4)
    found, _ = attend(MODULE, *(tensor.bfloat16() for tensor in (query, keys, values, mask)), scaling=0.3)
    exact = (torch.arange(4.0) * 0.3).softmax(-1)
    torch.testing.assert_close(found[0, 0, 0, :4].float(), exact, rtol=2**-8, atol=0)


def test_a_model_that_was_told_how_to_attend_goes_on_so() -> None:
    model = family("llama", torch.bfloat16).model
    model.set_attn_implementation("eager")
    use_short_rows(model)
    assert model.config._attn_implementation == "eager"


def test_float32_models_keep_fused_attention(pair: tuple[CausalBase, CausalBase]) -> None:
    use_short_rows(pair[1].model)
    assert pair[1].model.config._attn_implementation == "sdpa"


def test_reference_runs_on_fused_attention(pair: tuple[CausalBase, CausalBase]) -> None:
    model = pair[0].model
    with use_fused_attention(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == NAME
    with pytest.raises(ValueError, match="while it runs"), use_fused_attention(model):
        raise ValueError("while it runs")
    assert model.config._attn_implementation == NAME


@pytest.mark.parametrize("cap", [None, 0.7])
def test_one_token_of_each_row_attends_by_the_formula(cap: float | None) -> None:
    """Greedy tokens tell no small difference of scores, and a token by hand is on no other path."""
    torch.manual_seed(4)
    queries, keys, values = (torch.randn(2, 3, count, 4, dtype=torch.float64) * 2 for count in (2, 5, 5))
    mask = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    mask[1, ..., :2] = -torch.inf  # pads
    scores = torch.einsum("bkgd,bksd->bkgs", queries, keys)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    expected = torch.einsum("bkgs,bksd->bkgd", (scores + mask).softmax(-1), values)
    torch.testing.assert_close(attend_step(queries, LayerKeyValues(keys, values), mask, cap), expected)
