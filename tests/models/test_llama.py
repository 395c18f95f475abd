"""The fused Llama passes against transformers' own, and against a plain decoder in float64."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ptpipeline.models.frozen import PrefixCache
from ptpipeline.models.layout import Reads
from ptpipeline.models.llama import FusedLlama

ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]
READS = Reads(torch.tensor([0, 0, 1, 2]), torch.tensor([3, 4, 1, 6]))
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def tiny(kv_heads: int = 2, rope: dict[str, Any] | None = None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=64,
        initializer_range=0.2,
        **({"rope_parameters": rope} if rope else {}),
    )
    model = LlamaForCausalLM(config).double().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return model.requires_grad_(False)


def prompts_of(lengths: Sequence[int]) -> list[Tensor]:
    dice = torch.Generator().manual_seed(1)
    return [torch.randn(length, 32, generator=dice, dtype=torch.float64).requires_grad_() for length in lengths]


def ours(model: LlamaForCausalLM, prompts: Sequence[Tensor], members: Sequence[int]) -> Tensor:
    llama = FusedLlama.of(model)
    assert llama is not None
    ids = torch.zeros(len(ROWS), 7, dtype=torch.long)
    for index, row in enumerate(ROWS):
        ids[index, : len(row)] = torch.tensor(row)
    if not prompts:
        return llama.compute_states(ids, None, None, READS)
    width = max(len(prompt) for prompt in prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    padded = torch.stack([torch.nn.functional.pad(prompt, (0, 0, width - len(prompt), 0)) for prompt in prompts])
    cache = PrefixCache(llama.compute_prefix(padded, lengths), lengths)
    return llama.compute_states(ids, cache, torch.tensor(members), READS)


def concatenated(model: LlamaForCausalLM, prompts: Sequence[Tensor], members: Sequence[int]) -> Tensor:
    states = []
    for row, column in zip(*READS, strict=True):
        text = model.get_input_embeddings()(torch.tensor(ROWS[row]))
        joined = torch.cat([prompts[members[row]], text]) if prompts else text
        states.append(plain(model, joined)[len(joined) - len(text) + column])
    return torch.stack(states)


def plain(model: Any, states: Tensor) -> Tensor:
    """Hidden states [S, H] of one row, in the type of its weights throughout (transformers' norm rounds to float32)."""
    cos, sin = model.model.rotary_emb(states, torch.arange(len(states))[None])
    heads = lambda t: t.view(len(states), -1, 8).transpose(0, 1)  # noqa: E731
    turn = lambda t: t * cos[0] + torch.cat([-t[..., 4:], t[..., :4]], -1) * sin[0]  # noqa: E731
    norm = lambda t, m: t * (t.square().mean(-1, keepdim=True) + m.variance_epsilon).rsqrt() * m.weight  # noqa: E731
    for layer in model.model.layers:
        at, normed = layer.self_attn, norm(states, layer.input_layernorm)
        q, k, v = turn(heads(at.q_proj(normed))), turn(heads(at.k_proj(normed))), heads(at.v_proj(normed))
        k, v = (t.repeat_interleave(len(q) // len(t), 0) for t in (k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        states = states + at.o_proj(mixed.transpose(0, 1).flatten(1))
        normed = norm(states, layer.post_attention_layernorm)
        states = states + layer.mlp.down_proj(
            torch.nn.functional.silu(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)
        )
    return norm(states, model.model.norm)


def gradients(states: Tensor, prompts: Sequence[Tensor]) -> list[Tensor]:
    dice = torch.Generator().manual_seed(2)
    return list(
        torch.autograd.grad((states * torch.randn(states.shape, generator=dice, dtype=states.dtype)).sum(), prompts)
    )


@pytest.mark.parametrize(
    ("lengths", "members"), [((4,), (0, 0, 0)), ((1,), (0, 0, 0)), ((5, 2, 3), (2, 0, 1)), ((5, 2), (1, 0, 1))]
)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("rope", [None, LLAMA3])
def test_states_and_gradients_equal_a_plain_decoder(
    lengths: tuple[int, ...], members: tuple[int, ...], kv_heads: int, rope: dict[str, Any] | None
) -> None:
    model, prompts = tiny(kv_heads, rope), prompts_of(lengths)
    expected = concatenated(model, prompts, members)
    found = ours(model, prompts, members)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradients(found, prompts), gradients(expected, prompts), rtol=0, atol=1e-9)


def test_states_equal_transformers_own() -> None:
    model, prompts = tiny(), prompts_of([4])
    joined = torch.cat([prompts[0], model.get_input_embeddings()(torch.tensor(ROWS[0]))])[None]
    expected = model.model(inputs_embeds=joined).last_hidden_state[0, [7, 8]]
    torch.testing.assert_close(ours(model, prompts, [0, 0, 0])[:2], expected, rtol=0, atol=2e-5)


def test_rows_without_a_prompt_equal_a_plain_decoder() -> None:
    model = tiny()
    with torch.inference_mode():
        torch.testing.assert_close(ours(model, [], []), concatenated(model, [], []), rtol=0, atol=1e-9)


def test_fusing_leaves_the_model_as_it_was() -> None:
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FusedLlama.of(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    maps = model.model.layers[0].mlp
    assert maps.gate_proj.weight.untyped_storage().data_ptr() == maps.up_proj.weight.untyped_storage().data_ptr()


def test_nan_of_one_prompt_reaches_no_other() -> None:
    model, prompts = tiny(), prompts_of([4, 2, 3])
    expected = gradients(ours(model, prompts, [0, 1, 2]), prompts)
    with torch.no_grad():
        prompts[1][:] = float("nan")
    found = gradients(ours(model, prompts, [0, 1, 2]), prompts)
    assert torch.isnan(found[1]).all()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize("change", [{"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}])
def test_other_layers_are_declined(change: dict[str, Any]) -> None:
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, **change
    )
    assert FusedLlama.of(LlamaForCausalLM(config).requires_grad_(False)) is None
