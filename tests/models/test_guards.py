"""What a base model has to be: the passes by hand take models of known traits alone, no hybrid model gets a prompt."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
)

from ptpipeline.errors import BaseModelError
from ptpipeline.models import memory
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.decoder import FusedDecoder
from ptpipeline.models.guards import check_causal, check_logits, check_prefix
from ptpipeline.models.inputs import Input, KeyValues, PrefixCache
from ptpipeline.models.load import _read_context_length, _read_start_token
from ptpipeline.models.traits import UnknownTrait, read_longest
from tests.models.families import FAMILIES, SIZES, family


def llama(kind: type[LlamaForCausalLM] = LlamaForCausalLM, **config: Any) -> LlamaForCausalLM:
    return kind(LlamaConfig(**SIZES, max_position_embeddings=128, **config)).eval().requires_grad_(False)


class Otherwise(LlamaForCausalLM):
    """A kind of Llama that may compute otherwise."""


def of_a_known_name() -> type[LlamaForCausalLM]:
    """A class that is called as transformers' own, and may compute otherwise."""
    return type(LlamaForCausalLM.__name__, (LlamaForCausalLM,), {"__module__": "transformers_modules.lab.model"})


def with_a_gate() -> LlamaForCausalLM:
    model = llama()
    model.model.layers[1].self_attn.sinks = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
    return model


def with_an_adapter() -> LlamaForCausalLM:
    model = llama()
    projection = model.model.layers[2].self_attn.q_proj
    model.model.layers[2].self_attn.q_proj = type("Adapted", (torch.nn.Linear,), {})(32, 32, bias=False)
    model.model.layers[2].self_attn.q_proj.weight = projection.weight
    return model


UNKNOWN: dict[str, tuple[Callable[[], Any], str]] = {
    "another family": (lambda: family("gpt2").model, "architecture GPT2LMHeadModel"),
    "a subclass": (lambda: llama(Otherwise), "architecture Otherwise"),
    "code of its own under a known name": (lambda: llama(of_a_known_name()), "architecture LlamaForCausalLM"),
    "weights that train": (lambda: llama().requires_grad_(True), "weights that train"),
    "two types": (lambda: mixed_types(), "weights of several types or on several devices"),
    "a rope that changes with the length": (
        lambda: llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}),
        "rope_type dynamic",
    ),
    "a rope of one type of layers that changes with the length": (lambda: with_a_dynamic_type(), "rope_type dynamic"),
    "another activation": (lambda: llama(hidden_act="relu"), "activation relu"),
    "another parameter": (with_a_gate, "parameter self_attn.sinks"),
    "another kind of map": (with_an_adapter, "Adapted as self_attn.q_proj"),
    "bidirectional attention": (
        lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, use_bidirectional_attention=True)).requires_grad_(False),
        "bidirectional attention",
    ),
    "another type of layer": (lambda: with_layer_types(), "layer type linear_attention"),
    "heads of several widths": (lambda: with_odd_layer("head_dim", 4), "layers of different head_dim"),
    "scores of several scales": (lambda: with_odd_layer("scaling", 0.5), "layers of different scaling"),
}


def with_a_dynamic_type() -> Gemma3ForCausalLM:
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, layer_types=types)).requires_grad_(False)
    model.config.rope_parameters["full_attention"]["rope_type"] = "dynamic"
    return model


def with_layer_types() -> LlamaForCausalLM:
    model = llama()
    types = ["full_attention"] * len(model.model.layers)
    model.config.layer_types = [*types[1:], "linear_attention"]
    return model


def with_odd_layer(name: str, value: float) -> LlamaForCausalLM:
    model = llama()
    setattr(model.model.layers[-1].self_attn, name, value)
    return model


def mixed_types() -> LlamaForCausalLM:
    model = llama()
    model.model.norm.double()
    return model


@pytest.mark.parametrize("which", UNKNOWN)
def test_an_unknown_trait_is_named_and_nothing_is_joined(which: str) -> None:
    make, trait = UNKNOWN[which]
    model = make()
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(UnknownTrait, match=f"^{trait}$"):
        FusedDecoder(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers


def test_a_base_of_an_unknown_trait_says_so_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    base = replace(family("gpt2"), ref=family("gpt2").ref.model_copy(update={"name": "unheard"}))
    assert base.fused is None
    assert replace(base).fused is None  # a copy says it no second time
    assert [record.getMessage() for record in caplog.records] == [
        "base model unheard: the fast passes do not know its architecture GPT2LMHeadModel, so it runs through "
        "transformers' layers"
    ]


def test_rotations_that_hold_up_to_a_length_are_used_up_to_it() -> None:
    """Up to 64 positions Phi-3's long rope keeps its short frequencies."""
    base, prompt = family("phi3 longrope"), torch.ones(4, 32, dtype=torch.float64)
    assert base.fused is not None
    assert base.reaches(64)
    assert not base.reaches(65)
    row = [Input(list(range(1, 70)), [], 0)]
    torch.testing.assert_close(
        base.compute_states(None, row), base.concatenate([prompt[:0]], row), rtol=1e-9, atol=1e-9
    )


def test_of_several_ropes_the_one_that_changes_first_decides() -> None:
    longs = [{"rope_type": "longrope", "original_max_position_embeddings": length} for length in (64, 32)]
    ropes = {"sliding_attention": {"rope_type": "default"}, "full_attention": longs[0], "other": longs[1]}
    assert read_longest(SimpleNamespace(rope_parameters=ropes)) == 32
    assert read_longest(SimpleNamespace(rope_parameters=longs[0])) == 64
    assert read_longest(SimpleNamespace(rope_parameters={"rope_type": "default"})) is None


class Forgetful(MistralForCausalLM):
    """A model of which no trait is known."""


def hybrid(forgets: str) -> CausalBase:
    """A model in which one layer keeps no keys and values, or those of the last token alone."""
    base = family("mistral sliding")
    base.model.__class__ = Forgetful  # else the passes by hand take it
    layer = base.model.model.layers[-1 if forgets == "all" else 1]
    forward = layer.self_attn.forward

    def forgetful(*args: Any, past_key_values: Any = None, **options: Any) -> Any:
        if forgets == "all":
            return forward(*args, past_key_values=None, **options)
        answer = forward(*args, past_key_values=past_key_values, **options)
        kept = past_key_values.layers[1]
        kept.keys, kept.values = kept.keys[:, :, -1:], kept.values[:, :, -1:]
        return answer

    layer.self_attn.forward = forgetful
    return base


@pytest.mark.parametrize("forgets", ["all", "all but the last"])
def test_a_model_whose_layers_do_not_keep_every_token_is_refused(forgets: str) -> None:
    with pytest.raises(BaseModelError, match="its layers do not keep a key and a value for each token"):
        hybrid(forgets).compute_prefix([torch.zeros(4, 32, dtype=torch.float64)])


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_the_model(name: str) -> None:
    check_causal(family(name))


def test_a_model_that_makes_its_logits_in_an_unknown_way_is_refused() -> None:
    base = family("mistral sliding")
    forward = base.model.forward

    def scaled(**inputs: Any) -> Any:
        answer = forward(**inputs)
        answer.logits = answer.logits * 0.5
        return answer

    base.model.forward = scaled
    with pytest.raises(BaseModelError, match="makes its logits in a way that is not known here"):
        check_logits(base)


class Apart(CausalBase):
    """A base whose rows behind cached prompts are so far from concatenation."""

    by = 0.0

    def compute_states(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Tensor:
        return super().compute_states(cache, inputs) * (1 + self.by)


@pytest.mark.parametrize(
    ("dtype", "by", "free", "accepted"),
    [
        (torch.float32, 0.0, 2**40, True),
        (torch.float32, 0.03, 2**40, False),
        (torch.bfloat16, 0.03, 2**40, True),
        (torch.bfloat16, 0.2, 2**40, False),  # in float32 it is as far apart
        (torch.bfloat16, 0.2, 0, True),  # as experts that round otherwise may be, and nothing tells them apart
        (torch.bfloat16, 0.5, 0, False),
    ],
)
def test_states_behind_a_cached_prompt_may_be_as_far_from_concatenation_as_rounding_takes_them(
    dtype: torch.dtype, by: float, free: int, accepted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, figure in (("max", free), ("current", 0)):
        (tmp_path / f"memory.{name}").write_text(f"{figure}\n")
    (tmp_path / "memory.stat").write_text("")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    plain = family("gpt2", dtype)
    base = Apart(plain.model, plain.tokenizer, plain.ref, dtype, plain.context)
    monkeypatch.setattr(Apart, "by", by)
    with (
        nullcontext() if accepted else pytest.raises(BaseModelError, match="computes otherwise behind keys and values")
    ):
        check_prefix(base)


def test_logits_of_another_vocabulary_are_refused() -> None:
    base = family("mistral sliding")
    forward = base.model.forward

    def cut(**inputs: Any) -> Any:
        answer = forward(**inputs)
        answer.logits = answer.logits[..., :-1]
        return answer

    base.model.forward = cut
    with pytest.raises(BaseModelError, match="makes its logits in a way that is not known here"):
        check_logits(base)


def test_a_vocabulary_of_few_tokens_is_tried_on_those() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=3, n_embd=32, n_layer=1, n_head=4, n_positions=64)).eval()
    check_causal(replace(family("gpt2", torch.float32), model=model))


@pytest.mark.parametrize("shape", [(2, 2, 3, 8), (3, 4, 3, 8), (3, 2, 3, 4)])
def test_key_values_with_other_layers_heads_or_widths_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BaseModelError, match="train the prefix on this base"):
        family("llama").compute_prefix([KeyValues(torch.zeros(shape), torch.zeros(shape))])


def test_a_cache_of_several_prompts_is_told_apart_from_no_cache() -> None:
    base = family("llama")
    row = [Input([5, 6], [7], 0)]
    behind = base.compute_states(base.compute_prefix([torch.ones(3, 32, dtype=torch.float64)]), row)
    assert not torch.allclose(behind, base.compute_states(None, row))


# ---------------------------------------------------------------- what a configuration states


def configured(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"is_encoder_decoder": False} | fields))


def test_a_causal_model_reads_what_its_positions_allow_whatever_the_tokenizer_states() -> None:
    tokenizer = SimpleNamespace(model_max_length=99)
    assert _read_context_length("x", configured(max_position_embeddings=128), tokenizer) == 128
    assert _read_context_length("x", configured(n_positions=64), tokenizer) == 64


@pytest.mark.parametrize("stated", [{}, {"max_position_embeddings": 0}, {"max_position_embeddings": -5}])
def test_a_causal_model_without_a_stated_length_is_refused(stated: dict[str, int]) -> None:
    with pytest.raises(BaseModelError, match="add max_position_embeddings"):
        _read_context_length("x", configured(**stated), SimpleNamespace(model_max_length=99))


def test_a_long_rope_is_read_up_to_the_length_at_which_the_keys_of_a_prompt_would_turn() -> None:
    """Behind it, rows would follow a prompt whose keys were rotated by the short frequencies."""
    base, tokenizer = family("phi3 longrope"), SimpleNamespace(model_max_length=99)
    assert base.model.config.max_position_embeddings == 128
    assert _read_context_length("x", base.model.config, tokenizer) == 64
    prompt, row = torch.ones(4, 32, dtype=torch.float64), [Input(list(range(1, 62)), [], 0)]
    behind = base.compute_states(base.compute_prefix([prompt]), row)
    assert not torch.allclose(behind, base.concatenate([prompt], row))


def test_an_encoder_decoder_without_a_stated_length_reads_what_it_was_trained_on() -> None:
    assert (
        _read_context_length("x", configured(is_encoder_decoder=True), SimpleNamespace(model_max_length=10**30)) == 512
    )


@pytest.mark.parametrize("place", ["config", "generation_config"])
def test_the_start_token_is_read_where_it_is_stated(place: str) -> None:
    nothing, stated = SimpleNamespace(), SimpleNamespace(decoder_start_token_id=0)
    configs = {"config": nothing, "generation_config": nothing} | {place: stated}
    assert _read_start_token("x", SimpleNamespace(**configs)) == 0


def test_all_stated_ends_of_a_text_end_it() -> None:
    base = family("llama")
    base.model.generation_config.eos_token_id = [3, 4]
    assert base.end_tokens == {3, 4}
    base.model.generation_config.eos_token_id = None
    assert base.end_tokens == frozenset()
