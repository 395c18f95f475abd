"""The steps of a decoder layer between its large products: norm, rotation, softmax and gate, forward and backward.

Each is plain torch on whole tensors. Norms, softmax and the sums in them are float32 (float64 for float64).

Letters: B rows, T tokens of a row, N = B T flat tokens, H width, I width of the MLP, kv key/value heads with g query
heads each, d a head's width, P virtual tokens, S keys of a row.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.models import gpu_kernels
from ptpipeline.models.operands import Heads, LayerKeyValues, Norm, Rotation

_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")  # a private name, which another torch may lack


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type that sums and exponentials are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def linear(states: Tensor, weight: Tensor, plus: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return `states @ weight.T + bias + plus` [N, out] of [N, in], [out, in], [out] and [N, out].

    On a CPU oneDNN computes it in float32 too: torch's own choice takes up to a third longer.
    """
    on_cpu = states.device.type == "cpu" and states.dtype != torch.float64
    if not on_cpu or not torch._C._get_mkldnn_enabled() or not _ONEDNN:
        mapped = torch.nn.functional.linear(states, weight, bias)
        return mapped if plus is None else mapped.add_(plus)
    if plus is None:
        return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return torch.ops.mkldnn._linear_pointwise.binary(states, plus, weight, bias, "add")  # type: ignore[no-any-return]


def normalise(states: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor]:
    """Return the RMSNorm [..., H] of `states` [..., H], and 1 / root mean square [..., 1].

    This is equation 4 of Zhang & Sennrich 2019. Without a norm the states are returned as they are.
    """
    if norm is None:
        return states, states.new_empty(0)
    if states.is_cuda and norm.weight.dtype == states.dtype:
        return gpu_kernels.normalise(states, norm)
    wide = states.to(accumulation_dtype(states.dtype))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.epsilon)  # [..., 1]
    return (wide * scale * norm.weight).to(states.dtype), scale


def normalise_backward(
    grad: Tensor, states: Tensor, norm: Norm | None, scale: Tensor, plus: Tensor | None = None
) -> Tensor:
    """Return the gradient [..., H] of the norm's input, plus `plus`, the gradient of the path around the norm."""
    if norm is None:
        return grad if plus is None else grad + plus
    if states.is_cuda and norm.weight.dtype == states.dtype:
        return gpu_kernels.normalise_backward(grad, states, norm, scale, plus)
    wide = states.to(scale.dtype)
    weighted = grad.to(scale.dtype) * norm.weight
    along = (weighted * wide).mean(-1, keepdim=True) * scale * scale  # [..., 1]
    below = scale * (weighted - wide * along)  # [..., H]
    return (below if plus is None else below + plus).to(grad.dtype)


class Activation(NamedTuple):
    """A gate's activation and its backward pass, which writes the gradient of its input."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[..., Tensor]


ACTIVATIONS = {
    "silu": Activation(torch.nn.functional.silu, torch.ops.aten.silu_backward.grad_input),
    "gelu": Activation(torch.nn.functional.gelu, torch.ops.aten.gelu_backward.grad_input),
    "gelu_pytorch_tanh": Activation(
        partial(torch.nn.functional.gelu, approximate="tanh"),
        partial(torch.ops.aten.gelu_backward.grad_input, approximate="tanh"),
    ),
}


def gate(gate_up: Tensor, activation: str) -> Tensor:
    """Return the gated linear unit, activation(gate) * up [N, I] of [N, 2 I] (Shazeer 2020, section 2)."""
    opening, up = gate_up.chunk(2, -1)  # [N, I]
    return ACTIVATIONS[activation].forward(opening).mul_(up)


def gate_backward(grad: Tensor, gate_up: Tensor, activation: str) -> Tensor:
    """Return the gradient [N, 2 I] of gate and up, from the gradient [N, I] of the gated linear unit."""
    opening, up = gate_up.chunk(2, -1)  # [N, I]
    both = torch.empty_like(gate_up)  # [N, 2 I]
    opening_grad, up_grad = both.chunk(2, -1)  # [N, I]
    forward, backward = ACTIVATIONS[activation]
    backward(grad * up, opening, grad_input=opening_grad)
    torch.mul(grad, forward(opening), out=up_grad)
    return both


def softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the attention weights of scores [kv, B, g, T, S]; `mask` [B, 1, T, S] is added to the scores."""
    if scores.is_cuda:
        return gpu_kernels.softmax(scores, mask)
    return (scores.to(mask.dtype) + mask).softmax(-1).to(scores.dtype)


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of the scores, from the gradient of the weights; all [..., S]."""
    if grad.is_cuda:
        return gpu_kernels.softmax_backward(grad, weights)
    weighted = grad.to(accumulation_dtype(grad.dtype)) * weights
    return (weighted - weights * weighted.sum(-1, keepdim=True)).to(grad.dtype)


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Return the rotary embedding of [B, T, ..., d]: the two halves of its first r elements are the rotated plane."""
    shape = (*rotation.cos.shape[:2], *[1] * (heads.dim() - 3), -1)
    half = rotation.cos.shape[-1]
    if not half:
        return heads * rotation.scale
    if heads.is_cuda:
        return gpu_kernels.rotate(heads, rotation)
    cos, sin = rotation.cos.view(shape), rotation.sin.view(shape)  # [B, T, 1.., r / 2]
    first, second, rest = heads.tensor_split((half, 2 * half), -1)  # [B, T, ..., r / 2] twice, [B, T, ..., d - r]
    turned = [(first * cos - second * sin).to(heads.dtype), (second * cos + first * sin).to(heads.dtype)]
    return torch.cat([*turned, rest * rotation.scale] if rest.shape[-1] else turned, -1)


def split_queries(flat: Tensor, rotation: Rotation, heads: Heads) -> Tensor:
    """Return rotated queries [kv, B, g T, d] of [N, kv g d]; the rotation bears the scale of the scores."""
    rows, groups, shared, width = heads
    split = flat.view(rows, rotation.cos.shape[1], groups, shared, width)  # [B, T, kv, g, d]
    turned = rotate(split, rotation).permute(2, 0, 3, 1, 4)  # [kv, B, g, T, d]
    return turned.reshape(groups, rows, -1, width)  # [kv, B, g T, d]


def split_queries_backward(grad: Tensor, rotation: Rotation, heads: Heads) -> Tensor:
    """Return the gradient [N, kv g d] of the flat queries, from the gradient [kv, B, g T, d] of the split ones."""
    rows, groups, shared, width = heads
    split = grad.view(groups, rows, shared, rotation.cos.shape[1], width).permute(1, 3, 0, 2, 4)  # [B, T, kv, g, d]
    return rotate(split, rotation.invert()).reshape(-1, groups * shared * width)  # [N, kv g d]


def split_keys_values(
    flat: LayerKeyValues, rotation: Rotation, heads: Heads, prefix: LayerKeyValues | None = None
) -> LayerKeyValues:
    """Return rotated keys, and values, of flat ones [N, kv d]: [kv, B, T, d] each.

    Those of a `prefix`, [kv, B, P, d] each, stand in front of them: [kv, B, P + T, d] each.
    """
    rows, groups, _, width = heads
    by_head = (tensor.view(rows, rotation.cos.shape[1], groups, width) for tensor in flat)  # [B, T, kv, d]
    keys, values = by_head
    keys, values = rotate(keys, rotation).permute(2, 0, 1, 3), values.permute(2, 0, 1, 3)  # [kv, B, T, d]
    if prefix is None:
        return LayerKeyValues(keys.contiguous(), values.contiguous())
    return LayerKeyValues(torch.cat([prefix.keys, keys], 2), torch.cat([prefix.values, values], 2))


def split_keys_values_backward(grad: LayerKeyValues, rotation: Rotation) -> LayerKeyValues:
    """Return the gradients [N, kv d] of flat keys and values, from those of the split ones [kv, B, T, d]."""
    keys = rotate(grad.keys.permute(1, 2, 0, 3), rotation.invert())  # [B, T, kv, d]
    return LayerKeyValues(keys.flatten(2).flatten(0, 1), grad.values.permute(1, 2, 0, 3).flatten(2).flatten(0, 1))
