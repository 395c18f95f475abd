"""Tiny random models of several families, wrapped as the product wraps real ones."""

from types import SimpleNamespace
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
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from ptpipeline.models.causal import CausalBase
from ptpipeline.models.seq2seq import Seq2SeqBase
from ptpipeline.records.prompts import BaseModelRef

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def _gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=128, initializer_range=0.2)
    )


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
    return CausalBase(model, SimpleNamespace(eos_token_id=None), ref, dtype, 128)


T5_SIZES = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}

SEQ2SEQ_FAMILIES = {
    "t5 relu tied": lambda: T5ForConditionalGeneration(T5Config(**T5_SIZES)),
    "t5 gated untied": lambda: T5ForConditionalGeneration(
        T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
    "mt5 untied": lambda: MT5ForConditionalGeneration(MT5Config(**T5_SIZES)),
}


def seq2seq_family(name: str, dtype: torch.dtype = torch.float64) -> Seq2SeqBase:
    """The same of an encoder-decoder, with relative positions that weigh as much as the words."""
    torch.manual_seed(0)
    model = SEQ2SEQ_FAMILIES[name]()
    for stack in (model.encoder, model.decoder):
        torch.nn.init.normal_(stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight, std=2.0)
    if name.endswith(
        "untied"
    ):  # transformers 5 ties the head of every T5 that it makes, and separates only one that was saved so
        model.lm_head.weight = torch.nn.Parameter(torch.randn(97, 32))
    model.generation_config.eos_token_id = [1]
    ref = BaseModelRef(name=name, fingerprint="0" * 64, tokenizer_fingerprint="0" * 64, hidden_size=32)
    return Seq2SeqBase(model.to(dtype).eval().requires_grad_(False), None, ref, dtype, 128, 0)
