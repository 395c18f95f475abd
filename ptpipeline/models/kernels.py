"""The steps of a Llama layer between its large products: norm, rotation, softmax and gate, forward and backward.

Each is plain torch on whole tensors. Norms, softmax and the sums in them are float32 (float64 for float64). Letters: N
= B T flat tokens, kv key/value heads with g query heads each of size d, S keys of a row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")  # a private name, which another torch may lack


class Heads(NamedTuple):
    """B rows, kv key/value heads, g query heads of each, and d, a head's size."""

    rows: int
    groups: int
    shared: int
    size: int


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums and exponentials are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product(left: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
    """`left @ weight.T + plus` of [N, in], [out, in] and [N, out].

    On a CPU by oneDNN also in float32, where torch's own choice takes up to a third longer.
    """
    if left.device.type != "cpu" or left.dtype == torch.float64 or not torch._C._get_mkldnn_enabled() or not _ONEDNN:
        mapped = torch.nn.functional.linear(left, weight)
        return mapped if plus is None else mapped.add_(plus)
    if plus is None:
        return torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], "")  # type: ignore[no-any-return]
    return torch.ops.mkldnn._linear_pointwise.binary(left, plus, weight, None, "add")  # type: ignore[no-any-return]


def norm(states: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMSNorm of [N, H], and 1 / root mean square [N, 1]."""
    entered = states.to(wide(states.dtype))
    scale = torch.rsqrt(entered.square().mean(-1, keepdim=True) + epsilon)
    return (entered * scale * weight).to(states.dtype), scale


def norm_backward(grad: Tensor, states: Tensor, weight: Tensor, scale: Tensor, plus: Tensor | None) -> Tensor:
    """Gradient [N, H] of the norm's input, and `plus`, that of the path around it."""
    entered = states.to(scale.dtype)
    weighted = grad.to(scale.dtype) * weight
    along = (weighted * entered).mean(-1, keepdim=True) * scale * scale
    found = scale * (weighted - entered * along)
    return (found if plus is None else found + plus).to(grad.dtype)


def gate(gate_up: Tensor) -> Tensor:
    """SwiGLU: silu(gate) * up [N, I] of [N, 2 I]."""
    opened, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(opened).mul_(up)


def gate_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """Gradient [N, 2 I] of gate and up from that of SwiGLU [N, I]."""
    opened, up = gate_up.chunk(2, -1)
    found = torch.empty_like(gate_up)
    first, second = found.chunk(2, -1)
    torch.ops.aten.silu_backward.grad_input(grad * up, opened, grad_input=first)
    torch.mul(grad, torch.nn.functional.silu(opened), out=second)
    return found


def softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Attention weights of scores [kv, B, g, T, S], `mask` [B, 1, T, S] added."""
    return (scores.to(mask.dtype) + mask).softmax(-1).to(scores.dtype)


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the scores from that of the weights."""
    spread = grad.to(wide(grad.dtype)) * weights
    return (spread - weights * spread.sum(-1, keepdim=True)).to(grad.dtype)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [B, T, ..., d] by tables [B, T, 1.., d / 2]."""
    first, second = heads.chunk(2, -1)
    return torch.cat([(first * cos - second * sin).to(heads.dtype), (second * cos + first * sin).to(heads.dtype)], -1)


def queries(mapped: Tensor, cos: Tensor, sin: Tensor, heads: Heads) -> Tensor:
    """Rotated queries [kv, B, g T, d] of [N, kv g d]; the tables [B, T, d / 2] bear the scale of the scores."""
    rows, groups, shared, size = heads
    split = mapped.view(rows, cos.shape[1], groups, shared, size)
    rotated = _rotated(split, cos[:, :, None, None], sin[:, :, None, None])
    return rotated.permute(2, 0, 3, 1, 4).reshape(groups, rows, -1, size)


def queries_backward(grad: Tensor, cos: Tensor, sin: Tensor, heads: Heads) -> Tensor:
    """Gradient [N, kv g d] of the map from that of the queries."""
    rows, groups, shared, size = heads
    split = grad.view(groups, rows, shared, cos.shape[1], size).permute(1, 3, 0, 2, 4)
    return _rotated(split, cos[:, :, None, None], -sin[:, :, None, None]).reshape(-1, groups * shared * size)


def keys_values(mapped: Tensor, cos: Tensor, sin: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Rotated keys, and values, [kv, B, T, d] each, of [N, 2 kv d]."""
    rows, groups, _, size = heads
    split = mapped.view(rows, cos.shape[1], 2, groups, size)
    keys = _rotated(split[:, :, 0], cos[:, :, None], sin[:, :, None])
    return keys.permute(2, 0, 1, 3).contiguous(), split[:, :, 1].permute(2, 0, 1, 3).contiguous()


def keys_values_behind(
    mapped: Tensor, cos: Tensor, sin: Tensor, prefix: tuple[Tensor, Tensor], heads: Heads
) -> tuple[Tensor, Tensor]:
    """The same behind those of a prefix, [kv, B, P, d] each: [kv, B, S, d] each."""
    rows, groups, _, size = heads
    split = mapped.view(rows, cos.shape[1], 2, groups, size)
    keys = _rotated(split[:, :, 0], cos[:, :, None], sin[:, :, None])
    return torch.cat([prefix[0], keys.permute(2, 0, 1, 3)], 2), torch.cat(
        [prefix[1], split[:, :, 1].permute(2, 0, 1, 3)], 2
    )


def keys_values_backward(keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, heads: Heads) -> Tensor:
    """Gradient [N, 2 kv d] of the map from those of keys and values [kv, B, T, d]."""
    _, groups, _, size = heads
    turned = _rotated(keys.permute(1, 2, 0, 3), cos[:, :, None], -sin[:, :, None])
    return torch.stack([turned, values.permute(1, 2, 0, 3)], 2).view(-1, 2 * groups * size)


def heads_backward(
    grads: tuple[Tensor, Tensor, Tensor], own: tuple[Tensor, Tensor], scaled: tuple[Tensor, Tensor], heads: Heads
) -> Tensor:
    """Gradient [N, (g + 2) kv d] of the fused map from those of queries [kv, B, g T, d], keys and values [kv, B, T, d].

    `own` are the keys' tables, `scaled` the queries'.
    """
    rows, groups, shared, size = heads
    tokens = own[0].shape[1]
    split = grads[0].view(groups, rows, shared, tokens, size).permute(1, 3, 0, 2, 4)
    asked = _rotated(split, scaled[0][:, :, None, None], -scaled[1][:, :, None, None]).reshape(rows * tokens, -1)
    turned = _rotated(grads[1].permute(1, 2, 0, 3), own[0][:, :, None], -own[1][:, :, None]).reshape(rows * tokens, -1)
    return torch.cat([asked, turned, grads[2].permute(1, 2, 0, 3).reshape(rows * tokens, -1)], 1)
