"""Steps of a layer in as few launches as torch has kernels for: on a GPU each launch of a small tensor costs the same.

They compute what their namesakes in `kernels` compute, and sum in the same types; only the order of sums is theirs.

Letters: H width, B rows, T tokens of a row, S keys, kv key/value heads with g query heads each, d a head's width.
"""

import torch
from torch import Tensor

from ptpipeline.models.operands import Norm, Rotation


def normalise(states: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return the RMSNorm [..., H] of `states` [..., H], in its weight's type, and 1 / root mean square [..., 1]."""
    normed, scale = torch.ops.aten._fused_rms_norm(states, norm.weight.shape, norm.weight, norm.epsilon)
    return normed, scale


def normalise_backward(grad: Tensor, states: Tensor, norm: Norm, scale: Tensor, plus: Tensor | None) -> Tensor:
    """Return the gradient [..., H] of the norm's input, plus `plus`."""
    below: Tensor = torch.ops.aten._fused_rms_norm_backward(
        grad.contiguous(), states, norm.weight.shape, scale, norm.weight, [True, False]
    )[0]
    return below if plus is None else below.add_(plus)


def softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the attention weights of scores [kv, B, g, T, S], whose memory they take; `mask` [B, 1, T, S] is added."""
    return scores.add_(mask).softmax(-1)


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of the scores, from the gradient of the weights; all [..., S]."""
    below: Tensor = torch.ops.aten._softmax_backward_data(grad, weights, -1, grad.dtype)
    return below


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Return the rotary embedding of [B, T, ..., d]: the two halves of its first r elements are the rotated plane."""
    half = rotation.cos.shape[-1]
    shape = (*rotation.cos.shape[:2], *[1] * (heads.dim() - 3), half)
    cos, sin = rotation.cos.view(shape), rotation.sin.view(shape)  # [B, T, 1.., r / 2]
    first, second, rest = heads.tensor_split((half, 2 * half), -1)  # [B, T, ..., r / 2] twice, [B, T, ..., d - r]
    turned = torch.empty_like(heads, memory_format=torch.contiguous_format)  # [B, T, ..., d]
    torch.addcmul(first * cos, second, sin, value=-1, out=turned[..., :half])
    torch.addcmul(second * cos, first, sin, out=turned[..., half : 2 * half])
    if rest.shape[-1]:
        torch.mul(rest, rotation.scale, out=turned[..., 2 * half :])
    return turned
