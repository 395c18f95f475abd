"""The steps of a Llama layer between its large products: norm, rotation, softmax and gate, forward and backward.

Each is plain torch on whole tensors. Norms, softmax and the sums in them are float32 (float64 for float64).

Letters: B rows, T tokens of a row, N = B T flat tokens, H width, I width of the MLP, kv key/value heads with g query
heads each, d a head's width, P virtual tokens, S keys of a row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")  # a private name, which another torch may lack


class Heads(NamedTuple):
    """How a flat tensor splits into heads: B rows, kv key/value heads, g query heads of each, a head's width d."""

    rows: int
    groups: int
    shared: int
    width: int


class Rotation(NamedTuple):
    """Cosine and sine [B, T, d / 2] of the tokens' positions, for rotary embeddings (Su et al. 2021, section 3.4)."""

    cos: Tensor
    sin: Tensor

    def invert(self) -> "Rotation":
        """Return the rotation by the opposite angles: the backward pass of this one."""
        return Rotation(self.cos, -self.sin)


class LayerKeyValues(NamedTuple):
    """Keys and values of one layer, [kv, B, tokens, d] each."""

    keys: Tensor
    values: Tensor


class HeadGradients(NamedTuple):
    """Gradients of one layer's queries [kv, B, g T, d], keys [kv, B, T, d] and values [kv, B, T, d]."""

    queries: Tensor
    keys: Tensor
    values: Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type that sums and exponentials are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def linear(states: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
    """Return `states @ weight.T + plus` [N, out] of [N, in], [out, in] and [N, out].

    On a CPU oneDNN computes it in float32 too: torch's own choice takes up to a third longer.
    """
    on_cpu = states.device.type == "cpu" and states.dtype != torch.float64
    if not on_cpu or not torch._C._get_mkldnn_enabled() or not _ONEDNN:
        mapped = torch.nn.functional.linear(states, weight)
        return mapped if plus is None else mapped.add_(plus)
    if plus is None:
        return torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], "")  # type: ignore[no-any-return]
    return torch.ops.mkldnn._linear_pointwise.binary(states, plus, weight, None, "add")  # type: ignore[no-any-return]


def norm(states: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the RMSNorm [N, H] of `states` [N, H], and 1 / root mean square [N, 1] (Zhang & Sennrich 2019, eq. 4)."""
    wide = states.to(accumulation_dtype(states.dtype))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)  # [N, 1]
    return (wide * scale * weight).to(states.dtype), scale


def norm_backward(grad: Tensor, states: Tensor, weight: Tensor, scale: Tensor, plus: Tensor | None) -> Tensor:
    """Return the gradient [N, H] of the norm's input, plus `plus`, the gradient of the path around the norm."""
    wide = states.to(scale.dtype)
    weighted = grad.to(scale.dtype) * weight
    along = (weighted * wide).mean(-1, keepdim=True) * scale * scale  # [N, 1]
    below = scale * (weighted - wide * along)  # [N, H]
    return (below if plus is None else below + plus).to(grad.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """Return SwiGLU, silu(gate) * up [N, I] of [N, 2 I] (Shazeer 2020, equation 6)."""
    gate, up = gate_up.chunk(2, -1)  # [N, I]
    return torch.nn.functional.silu(gate).mul_(up)


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """Return the gradient [N, 2 I] of gate and up, from the gradient [N, I] of SwiGLU."""
    gate, up = gate_up.chunk(2, -1)  # [N, I]
    both = torch.empty_like(gate_up)  # [N, 2 I]
    gate_grad, up_grad = both.chunk(2, -1)  # [N, I]
    torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=gate_grad)
    torch.mul(grad, torch.nn.functional.silu(gate), out=up_grad)
    return both


def softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the attention weights of scores [kv, B, g, T, S]; `mask` [B, 1, T, S] is added to the scores."""
    return (scores.to(mask.dtype) + mask).softmax(-1).to(scores.dtype)


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of the scores, from the gradient of the weights; all [..., S]."""
    weighted = grad.to(accumulation_dtype(grad.dtype)) * weights
    return (weighted - weights * weighted.sum(-1, keepdim=True)).to(grad.dtype)


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Return the rotary embedding of [B, T, ..., d]: the two halves of a head's width are the rotated plane."""
    shape = (*rotation.cos.shape[:2], *[1] * (heads.dim() - 3), -1)
    cos, sin = rotation.cos.view(shape), rotation.sin.view(shape)  # [B, T, 1.., d / 2]
    first, second = heads.chunk(2, -1)  # [B, T, ..., d / 2]
    return torch.cat([(first * cos - second * sin).to(heads.dtype), (second * cos + first * sin).to(heads.dtype)], -1)


def split_queries(mapped: Tensor, rotation: Rotation, heads: Heads) -> Tensor:
    """Return rotated queries [kv, B, g T, d] of [N, kv g d]; the rotation bears the scale of the scores."""
    rows, groups, shared, width = heads
    split = mapped.view(rows, rotation.cos.shape[1], groups, shared, width)  # [B, T, kv, g, d]
    turned = rotate(split, rotation).permute(2, 0, 3, 1, 4)  # [kv, B, g, T, d]
    return turned.reshape(groups, rows, -1, width)  # [kv, B, g T, d]


def split_queries_backward(grad: Tensor, rotation: Rotation, heads: Heads) -> Tensor:
    """Return the gradient [N, kv g d] of the flat map, from the gradient [kv, B, g T, d] of the queries."""
    rows, groups, shared, width = heads
    split = grad.view(groups, rows, shared, rotation.cos.shape[1], width).permute(1, 3, 0, 2, 4)  # [B, T, kv, g, d]
    return rotate(split, rotation.invert()).reshape(-1, groups * shared * width)  # [N, kv g d]


def split_keys_values(
    mapped: Tensor, rotation: Rotation, heads: Heads, prefix: LayerKeyValues | None = None
) -> LayerKeyValues:
    """Return rotated keys, and values, of [N, 2 kv d]: [kv, B, T, d] each.

    Those of a `prefix`, [kv, B, P, d] each, stand in front of them: [kv, B, P + T, d] each.
    """
    rows, groups, _, width = heads
    split = mapped.view(rows, rotation.cos.shape[1], 2, groups, width)  # [B, T, 2, kv, d]
    keys = rotate(split[:, :, 0], rotation).permute(2, 0, 1, 3)  # [kv, B, T, d]
    values = split[:, :, 1].permute(2, 0, 1, 3)  # [kv, B, T, d]
    if prefix is None:
        return LayerKeyValues(keys.contiguous(), values.contiguous())
    return LayerKeyValues(torch.cat([prefix.keys, keys], 2), torch.cat([prefix.values, values], 2))


def split_keys_values_backward(grad: LayerKeyValues, rotation: Rotation, heads: Heads) -> Tensor:
    """Return the gradient [N, 2 kv d] of the flat map, from the gradients [kv, B, T, d] of keys and values."""
    keys = rotate(grad.keys.permute(1, 2, 0, 3), rotation.invert())  # [B, T, kv, d]
    both = torch.stack([keys, grad.values.permute(1, 2, 0, 3)], 2)  # [B, T, 2, kv, d]
    return both.view(-1, 2 * heads.groups * heads.width)  # [N, 2 kv d]


def split_heads_backward(grad: HeadGradients, key_rotation: Rotation, query_rotation: Rotation, heads: Heads) -> Tensor:
    """Return the gradient [N, (g + 2) kv d] of the map that yields queries, keys and values at once."""
    count = heads.rows * key_rotation.cos.shape[1]
    queries = split_queries_backward(grad.queries, query_rotation, heads)  # [N, g kv d]
    keys = rotate(grad.keys.permute(1, 2, 0, 3), key_rotation.invert()).reshape(count, -1)  # [N, kv d]
    values = grad.values.permute(1, 2, 0, 3).reshape(count, -1)  # [N, kv d]
    return torch.cat([queries, keys, values], 1)
