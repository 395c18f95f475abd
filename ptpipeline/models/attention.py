"""Attention of short rows in bfloat16 on a CPU: plain matrix products over the key/value heads, without copies of them.

torch's fused kernel for CPUs is made for long rows: its backward pass does not use the processor's bfloat16 products,
and it copies grouped heads. Here the queries that share a key/value head are one matrix, and the softmax is float32. At
B=16, T=40, P=100 forward and backward take a quarter of the fused kernel's time, at the same distance from the float32
gradient. In float32 the two take the same time, so the fused kernel stays.

Letters: B rows, T tokens, P virtual tokens, S = P + T keys, kv key/value heads with g query heads each, d a head's
width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NAME = "grouped_products"
MAX_KEYS = 256  # longer rows take the fused kernel, which keeps no scores [B, kv g, T, S] for the backward pass


def use_short_rows(model: Any) -> None:
    """Let a bfloat16 model on the CPU attend this way, if transformers would take torch's fused attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)


@contextmanager
def use_fused_attention(model: Any) -> Iterator[None]:
    """Let the model attend as transformers would while this is open: for the reference of comparisons."""
    chosen = model.config._attn_implementation
    if chosen != NAME:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(chosen)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Return the attention [B, T, kv g, d] of queries [B, kv g, T, d] to keys and values [B, kv, S, d].

    The mask [B, 1, T, S] is added to the scores. Long rows, and all that is more than plain masked attention, go to
    transformers' own function.
    """
    plain = not options.get("dropout") and options.get("position_bias") is None
    if attention_mask is None or key.shape[2] > MAX_KEYS or not plain:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return attended
    rows, heads, tokens, width = query.shape  # values may have another width, as those of latent attention have
    groups = key.shape[1]
    scale = options.get("scaling") or width**-0.5
    grouped = query.reshape(rows, groups, -1, width)  # [B, kv, g T, d]
    scores = torch.matmul(grouped, key.transpose(2, 3)).float()  # [B, kv, g T, S]
    scores = scores.view(rows, heads, tokens, -1) * scale  # [B, kv g, T, S]
    weights = (scores + attention_mask).softmax(-1).to(value.dtype)  # [B, kv g, T, S]
    mixed = torch.matmul(weights.view(rows, groups, -1, key.shape[2]), value)  # [B, kv, g T, d]
    return mixed.view(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None
