"""What a base model has to be: the passes by hand take plain frozen Llamas alone, and no hybrid model gets a prompt."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ptpipeline.errors import BaseModelError
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.frozen import Input, KeyValues
from ptpipeline.models.llama import FusedLlama
from ptpipeline.models.load import _read_context_length, _read_start_token
from tests.models.families import SIZES, family

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64},
}


def llama(kind: type[LlamaForCausalLM] = LlamaForCausalLM, **config: Any) -> LlamaForCausalLM:
    return kind(LlamaConfig(**SIZES, max_position_embeddings=128, **config)).eval().requires_grad_(False)


@pytest.mark.parametrize(("rope", "taken"), [("default", True), ("linear", True), ("dynamic", False), ("yarn", False)])
def test_only_positions_that_do_not_change_with_the_length_are_computed_by_hand(rope: str, taken: bool) -> None:
    assert (FusedLlama.of(llama(rope_parameters=ROPES[rope])) is not None) == taken


def test_a_model_that_trains_is_declined() -> None:
    model = llama()
    model.model.norm.weight.requires_grad_(True)
    assert FusedLlama.of(model) is None


def test_a_kind_of_llama_that_may_compute_otherwise_is_declined() -> None:
    class Otherwise(LlamaForCausalLM):
        pass

    assert FusedLlama.of(llama(Otherwise)) is None


def test_another_family_is_declined() -> None:
    assert FusedLlama.of(family("mistral sliding").model) is None


def hybrid(forgets: str) -> CausalBase:
    """A model in which one layer keeps no keys and values, or those of the last token alone."""
    base = family("mistral sliding")
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


def test_a_causal_model_without_a_stated_length_is_refused() -> None:
    with pytest.raises(BaseModelError, match="add max_position_embeddings"):
        _read_context_length("x", configured(), SimpleNamespace(model_max_length=99))


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
