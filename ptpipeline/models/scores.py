"""Attention of the passes by hand, span by span: scores of no more than one span of queries are in memory at once.

A span multiplies only the keys that its queries may attend to: a causal row of many spans costs half of all its pairs,
a sliding window a band of them. Of a single span the weights are kept for the backward pass; those of several are
computed again, from the same products in the same order.

Letters: B rows, T tokens of a row, c queries of a span, kv key/value heads with g query heads each, d a head's width,
S keys of a row, s keys of a span.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.models import kernels
from ptpipeline.models.layout import Layout, Span
from ptpipeline.models.operands import HeadGradients, Heads, LayerKeyValues


class Weights(NamedTuple):
    """Attention weights of a span [kv, B, g c, s]; with a cap, also the hyperbolic tangents [...] of its scores."""

    weights: Tensor
    tangents: Tensor | None


def attend(queries: Tensor, own: LayerKeyValues, layout: Layout, cap: float | None) -> tuple[Tensor, Weights | None]:
    """Return the values that each query attends to [kv, B, g T, d], and the weights if they are kept.

    `queries` [kv, B, g T, d] bear the scale of the scores; keys and values are [kv, B, S, d].
    """
    if len(layout.spans) == 1:
        weights = _weigh(queries, own.keys, layout.mask, layout.heads, cap)
        return torch.matmul(weights.weights, own.values), weights
    by_token, mixed = _by_token(queries, layout.heads), torch.empty_like(queries)  # [kv, B, g, T, d]
    mixed_by_token = _by_token(mixed, layout.heads)
    for span in layout.spans:
        part = _Part.of(by_token, own, layout, span)
        weights = _weigh(part.queries, part.own.keys, part.mask, layout.heads, cap)
        mixed_by_token[:, :, :, span.first : span.last] = _by_token(
            torch.matmul(weights.weights, part.own.values), layout.heads
        )
    return mixed, None


def attend_backward(
    grad: Tensor, queries: Tensor, own: LayerKeyValues, kept: Weights | None, layout: Layout, cap: float | None
) -> HeadGradients:
    """Return the gradients of queries, keys and values, from that of the attended values [kv, B, g T, d]."""
    if kept is not None:
        return _backward(grad, queries, own, kept, cap)
    by_token, grad_by_token = _by_token(queries, layout.heads), _by_token(grad, layout.heads)  # [kv, B, g, T, d]
    whole = HeadGradients(torch.empty_like(queries), torch.zeros_like(own.keys), torch.zeros_like(own.values))
    queries_by_token = _by_token(whole.queries, layout.heads)
    for span in layout.spans:
        part = _Part.of(by_token, own, layout, span)
        weights = _weigh(part.queries, part.own.keys, part.mask, layout.heads, cap)
        of_span = _take(grad_by_token, span)  # [kv, B, g c, d]
        grads = _backward(of_span, part.queries, part.own, weights, cap)
        queries_by_token[:, :, :, span.first : span.last] = _by_token(grads.queries, layout.heads)
        whole.keys[:, :, span.low : span.high] += grads.keys
        whole.values[:, :, span.low : span.high] += grads.values
    return whole


def attend_step(queries: Tensor, own: LayerKeyValues, mask: Tensor, cap: float | None) -> Tensor:
    """Return the values [B, kv, g, d] that one token of each row attends to.

    `queries` [B, kv, g, d] bear the scale of the scores; keys and values are [B, kv, S, d], the mask is [B, 1, 1, S].
    The keys stand first in their product: the other way round, torch would copy them all in bfloat16.
    """
    scores = torch.matmul(own.keys, queries.transpose(2, 3)).transpose(2, 3)  # [B, kv, g, S]
    wide = scores.to(kernels.accumulation_dtype(queries.dtype), memory_format=torch.contiguous_format)
    if cap is not None:
        wide = torch.tanh(wide / cap) * cap
    return torch.matmul((wide + mask).softmax(-1).to(queries.dtype), own.values)


class _Part(NamedTuple):
    """A span's queries [kv, B, g c, d], keys and values [kv, B, s, d], and mask [B, 1, c, s]."""

    queries: Tensor
    own: LayerKeyValues
    mask: Tensor

    @classmethod
    def of(cls, by_token: Tensor, own: LayerKeyValues, layout: Layout, span: Span) -> "_Part":
        """Cut the span out of queries [kv, B, g, T, d] and of the row's keys and values."""
        first, last, low, high = span
        keys_values = LayerKeyValues(own.keys[:, :, low:high], own.values[:, :, low:high])
        return cls(_take(by_token, span), keys_values, layout.mask[:, :, first:last, low:high])


def _by_token(tensor: Tensor, heads: Heads) -> Tensor:
    """Return [kv, B, g, T, d] of [kv, B, g T, d]."""
    return tensor.view(heads.groups, heads.rows, heads.shared, -1, heads.width)


def _take(by_token: Tensor, span: Span) -> Tensor:
    """Return a span [kv, B, g c, d] of [kv, B, g, T, d]."""
    return by_token[:, :, :, span.first : span.last].flatten(2, 3)


def _weigh(queries: Tensor, keys: Tensor, mask: Tensor, heads: Heads, cap: float | None) -> Weights:
    """Return the weights of queries [kv, B, g c, d] over keys [kv, B, s, d] under a mask [B, 1, c, s].

    A cap bounds the scores to cap * tanh(scores / cap) (Gemma 2, section 2).
    """
    scores = torch.matmul(queries, keys.transpose(2, 3))  # [kv, B, g c, s]
    tangents, capped = None, scores
    if cap is not None:
        tangents = torch.tanh(scores.to(kernels.accumulation_dtype(scores.dtype)) / cap)  # [kv, B, g c, s]
        capped = tangents * cap
    by_head = capped.view(heads.groups, heads.rows, heads.shared, -1, keys.shape[2])  # [kv, B, g, c, s]
    return Weights(kernels.softmax(by_head, mask).view(scores.shape).to(queries.dtype), tangents)


def _backward(grad: Tensor, queries: Tensor, own: LayerKeyValues, kept: Weights, cap: float | None) -> HeadGradients:
    """Return the gradients of queries [kv, B, g c, d], keys and values [kv, B, s, d] of one span."""
    values = torch.matmul(kept.weights.transpose(2, 3), grad)  # [kv, B, s, d]
    scores = kernels.softmax_backward(torch.matmul(grad, own.values.transpose(2, 3)), kept.weights)  # [kv, B, g c, s]
    if kept.tangents is not None:
        scores = (scores * (1 - kept.tangents.square())).to(grad.dtype)
    return HeadGradients(torch.matmul(scores, own.keys), torch.matmul(scores.transpose(2, 3), queries), values)
