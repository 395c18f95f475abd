"""Attention of short rows in bfloat16 on a CPU: plain matrix products over the key/value heads, without copies of them.

torch's fused kernel for CPUs is made for long rows: its backward pass does not use the processor's bfloat16 products,
and grouped heads are copied for it. Here the queries that share a key/value head are one matrix, and the softmax is
float32. At B=16, T=40, P=100 forward and backward take a quarter of the fused kernel's time, at the same distance from
the float32 gradient. In float32 the two are level, so the fused kernel stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NAME = "grouped_products"
MAX_KEYS = 256  # longer rows take the fused kernel, which keeps no scores [B, heads, T, P+T] for the backward pass


def use_short_rows(model: Any) -> None:
    """Let a bfloat16 model on the CPU attend this way, where transformers would take torch's fused attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, grouped_products)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)


@contextmanager
def fused(model: Any) -> Iterator[None]:
    """Attention as transformers has it while this is open: for the reference that is compared with."""
    chosen = model.config._attn_implementation
    if chosen != NAME:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(chosen)


def grouped_products(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention [B, T, heads, d] of queries [B, heads, T, d] to keys and values [B, heads_kv, S, d], S = P + T.

    The mask [B, 1, T, S] is added to the scores. Long rows, and what is more than plain masked attention, go to
    transformers' own function.
    """
    if (
        attention_mask is None
        or key.shape[2] > MAX_KEYS
        or options.get("dropout")
        or options.get("position_bias") is not None
    ):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        long: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return long
    rows, heads, tokens, size = query.shape
    shared = (rows, key.shape[1], -1, size)
    scale = options.get("scaling") or size**-0.5
    scores = torch.matmul(query.reshape(shared), key.transpose(2, 3)).float().view(rows, heads, tokens, -1) * scale
    weights = (scores + attention_mask).softmax(-1).to(value.dtype)
    mixed = torch.matmul(weights.view(rows, key.shape[1], -1, key.shape[2]), value)
    return mixed.view(rows, heads, tokens, size).transpose(1, 2).contiguous(), None
