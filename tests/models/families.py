"""Tiny random models of several causal families, wrapped as the product wraps real ones."""

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from ptpipeline.models.causal import CausalBase
from ptpipeline.records import BaseModelRef

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}


def _gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=128, initializer_range=0.2))


def _gemma() -> Any:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, max_position_embeddings=128, sliding_window=6))


def _mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**SIZES, max_position_embeddings=128, sliding_window=6))


FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=128)),
    "gpt2": _gpt2,
    "gemma3 sliding": _gemma,
    "mistral sliding": _mistral,
}


def family(name: str, dtype: torch.dtype = torch.float64) -> CausalBase:
    """A random model of that family in eval mode, frozen; float64 so that only real differences show."""
    torch.manual_seed(0)
    model = FAMILIES[name]().to(dtype).eval().requires_grad_(False)
    ref = BaseModelRef(name=name, fingerprint="0" * 64, tokenizer_fingerprint="0" * 64, hidden_size=32)
    return CausalBase(model, None, ref, dtype, 128)
