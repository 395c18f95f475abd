"""Tiny random models of several families, wrapped as the product wraps real ones."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.masking_utils import eager_mask

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


def _decoder(model: type, config: type, **settings: Any) -> Callable[[], Any]:
    return lambda: model(config(**{**SIZES, "max_position_embeddings": 128} | settings))


LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0],
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
MULTIPLIERS = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 2.0,
}  # fmt: skip

# Those of which the passes by hand know all traits; every architecture that they know is here.
FUSED = {
    "llama": _decoder(LlamaForCausalLM, LlamaConfig),
    "llama biases": _decoder(LlamaForCausalLM, LlamaConfig, attention_bias=True, mlp_bias=True),
    "llama one kv head": _decoder(LlamaForCausalLM, LlamaConfig, num_key_value_heads=1, rope_parameters=LLAMA3),
    "llama gelu": _decoder(LlamaForCausalLM, LlamaConfig, hidden_act="gelu", num_key_value_heads=4),
    "mistral sliding": _decoder(MistralForCausalLM, MistralConfig, sliding_window=6),
    "ministral mixed": _decoder(
        MinistralForCausalLM, MinistralConfig, sliding_window=6, layer_types=MIXED, head_dim=16
    ),
    "qwen2": _decoder(Qwen2ForCausalLM, Qwen2Config),
    "qwen2 yarn sliding": _decoder(
        Qwen2ForCausalLM, Qwen2Config,
        rope_parameters=YARN, use_sliding_window=True, sliding_window=6, max_window_layers=1,
    ),
    "qwen3": _decoder(Qwen3ForCausalLM, Qwen3Config, head_dim=16),
    "phi3": _decoder(Phi3ForCausalLM, Phi3Config, pad_token_id=0, sliding_window=None),
    "phi3 sliding partial": _decoder(
        Phi3ForCausalLM, Phi3Config, pad_token_id=0, sliding_window=6, rope_parameters=PARTIAL
    ),
    "phi3 longrope": _decoder(
        Phi3ForCausalLM, Phi3Config, pad_token_id=0, original_max_position_embeddings=64, rope_parameters=LONGROPE
    ),
    "gemma": _decoder(GemmaForCausalLM, GemmaConfig, head_dim=16),
    "gemma2": _decoder(
        Gemma2ForCausalLM, Gemma2Config,
        head_dim=8, sliding_window=6, attn_logit_softcapping=0.7, query_pre_attn_scalar=4,
    ),
    "gemma3 sliding": _decoder(
        Gemma3ForCausalLM, Gemma3TextConfig, head_dim=8, sliding_window=6, layer_types=MIXED, query_pre_attn_scalar=4
    ),
    "olmo2": _decoder(Olmo2ForCausalLM, Olmo2Config),
    "olmo3 sliding": _decoder(Olmo3ForCausalLM, Olmo3Config, sliding_window=6, layer_types=MIXED),
    "granite": _decoder(GraniteForCausalLM, GraniteConfig, **MULTIPLIERS),
    "smollm3 without positions": _decoder(SmolLM3ForCausalLM, SmolLM3Config, pad_token_id=0, no_rope_layers=[1, 0, 1]),
}  # fmt: skip
FAMILIES = FUSED | {"gpt2": _gpt2}


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of the 97 tokens that these models have: three control tokens and the letters of ASCII."""
    tokens = ["<unk>", "<s>", "</s>", *map(chr, range(33, 127))]
    made = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, [], unk_token="<unk>"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **roles).save_pretrained(folder)


def _vary(model: Any) -> None:
    """Draw norms and biases, which begin as ones and zeros and hide mistakes."""
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, float("norm" in name), 0.3)


def compute_in_float64(model: Any) -> None:
    """Let transformers' layers compute in float64 where they round to float32: in norms, and in the softmax."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_normalise, module, float("Gemma" in type(module).__name__))
    if isinstance(model, Gemma2ForCausalLM):  # the others attend by torch's own function, which does not round
        AttentionInterface.register("exact", _attend)
        AttentionMaskInterface.register("exact", eager_mask)
        model.set_attn_implementation("exact")


def _normalise(module: Any, offset: float, states: Tensor) -> Tensor:
    epsilon = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + epsilon) * (module.weight + offset)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float, **_: Any
) -> tuple[Tensor, None]:
    key, value = (tensor.repeat_interleave(module.num_key_value_groups, 1) for tensor in (key, value))
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scaling / softcap) + mask
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def family(name: str, dtype: torch.dtype = torch.float64) -> CausalBase:
    """A random model of that family in eval mode, frozen; float64 so that only real differences show."""
    torch.manual_seed(0)
    model = FAMILIES[name]()
    if name != "llama":  # whose golden numbers are kept
        _vary(model)
    model = model.to(dtype).eval().requires_grad_(False)
    if dtype == torch.float64:
        compute_in_float64(model)
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
