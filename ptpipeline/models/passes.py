"""The two passes of a fused decoder: what each layer keeps on the way forward, and the way back through it.

Letters: B rows, T tokens of a row (padded), K prompts, P virtual tokens (padded), H width, L layers, d a head's width,
kv key/value heads, S = P + T keys, N states that are read, C states read of one row at most.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ptpipeline.models import kernels
from ptpipeline.models.kept import Kept, Normed, Saved
from ptpipeline.models.layout import Layout, Reads, RowPrompts, expand_to_rows, sum_over_rows
from ptpipeline.models.operands import AttentionGradients, HeadGradients, LayerKeyValues

if TYPE_CHECKING:
    from ptpipeline.models.decoder import FusedDecoder

_Tensors = Sequence[Tensor | None]


class Pass(Protocol):
    """A pass by hand: from tensors to tensors, and from the gradients of what it gave to those of what it was given."""

    def forward(self, tensors: _Tensors, keep: bool, whole: bool | None = None) -> tuple[tuple[Tensor, ...], Any]:
        """Return what the pass gives, and with `keep` the state that its backward pass needs.

        `whole` says whether every layer keeps all that it needs then; without it free memory decides.
        """

    def backward(self, state: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Return the gradients of the given tensors, from those of what the pass gave; the state is used up."""


def apply_pass(run: Pass, tensors: _Tensors) -> tuple[Tensor, ...]:
    """Return what a pass gives; gradients flow back to the tensors that require them."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        outputs: tuple[Tensor, ...] = _Apply.apply(run, *tensors)  # type: ignore[no-untyped-call]
        return outputs
    with torch.no_grad():
        return run.forward(tensors, False)[0]


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Pass, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        outputs, ctx.state = run.forward(tensors, True)
        ctx.run = run
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.run.backward(ctx.state, grads)


class _PromptState(NamedTuple):
    """What the prompt pass keeps: shape of the embeddings, layouts, layers, and what the last layer needs."""

    shape: torch.Size
    layouts: list[Layout]
    kept: Kept
    last: tuple[Normed, Normed | None]


class PromptPass:
    """The prompt pass: every layer's keys and values; the last layer has nothing else. Here B = K and T = P."""

    def __init__(self, decoder: "FusedDecoder") -> None:
        self._decoder = decoder

    def forward(
        self, tensors: _Tensors, keep: bool, whole: bool | None = None
    ) -> tuple[tuple[Tensor, ...], _PromptState]:
        """Return all layers' keys, then their values, [K, kv, P, d] each, of embeddings [K, P, H] and lengths [K]."""
        embeds, lengths = _present(tensors)
        decoder = self._decoder
        by_kind = decoder.geometry.lay_out_prompts(embeds.shape[1], lengths)
        layouts = [by_kind[kind] for kind in decoder.layer_kinds]
        states, own = decoder.scale_embeddings(embeds.reshape(-1, embeds.shape[2])), []  # [K P, H]
        kept = Kept(len(layouts), partial(_run_again, decoder, layouts, (), None), whole)
        for index, layout in enumerate(layouts[:-1]):
            states, saved = decoder.forward_layer(decoder.layers[index], states, layout, None)
            own.append(saved.own)
            if keep:
                kept.push(saved)
        last, before, mapped_keys = decoder.map_last_prompt(states, layouts[-1])
        given = tuple(tensor.transpose(0, 1) for tensors in zip(*own, last, strict=True) for tensor in tensors)
        return given, _PromptState(embeds.shape, layouts, kept, (before, mapped_keys))

    def backward(self, state: _PromptState, grads: Sequence[Tensor]) -> tuple[Tensor, None]:
        """Return the gradient [K, P, H] of the embeddings."""
        decoder, layouts, count = self._decoder, state.layouts, len(self._decoder.layers)
        turned = [grad.transpose(0, 1) for grad in grads]  # L times keys, then L times values [kv, K, P, d]
        outer = [LayerKeyValues(*pair) for pair in zip(turned[:count], turned[count:], strict=True)]
        grad = decoder.backward_last_prompt(outer[-1], *state.last, layouts[-1])  # [K P, H]
        for index in reversed(range(count - 1)):
            saved, layer, layout = state.kept.pop(index), decoder.layers[index], layouts[index]
            between, (queries, keys, values) = decoder.backward_attention(layer, saved, grad, layout)
            heads = HeadGradients(queries, keys.add_(outer[index].keys), values.add_(outer[index].values))
            grad = decoder.backward_input(layer, saved, AttentionGradients(between, heads), layout)  # [K P, H]
        return decoder.scale_embeddings(grad).view(state.shape), None


class _RowState(NamedTuple):
    """What the rows' pass keeps: layouts, what the rows stand behind, layers, and what the last norm needs."""

    layouts: list[Layout]
    behind: RowPrompts
    shape: torch.Size
    kept: Kept
    final: Normed


class RowPass:
    """The rows' pass behind a prefix or none: the final states that are read; gradients of the prefix alone."""

    def __init__(self, decoder: "FusedDecoder") -> None:
        self._decoder = decoder

    def forward(
        self, tensors: _Tensors, keep: bool, whole: bool | None = None
    ) -> tuple[tuple[Tensor, ...], _RowState | None]:
        """Return the states [N, H] of `RowPrompts` (or None twice), ids [B, T], `Reads` and the prefix's tensors."""
        indexes, lengths, *others = tensors
        ids, columns, places, *before = _present(others)
        behind = None if indexes is None or lengths is None else RowPrompts(indexes, lengths)
        decoder = self._decoder
        layouts = decoder.lay_out_rows(ids, behind, before, Reads(columns, places))
        kept = Kept(len(layouts), partial(_run_again, decoder, layouts, before, behind), whole)
        states = decoder.forward_rows(ids, behind, before, layouts, kept.push if keep else None)  # [N, H]
        normed, scale = kernels.normalise(states, decoder.norm)  # [N, H], [N, 1]
        if behind is None or not keep:
            return (normed,), None
        return (normed,), _RowState(layouts, behind, before[0].shape, kept, Normed(states, scale))

    def backward(self, state: _RowState, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Return the gradients [K, kv, P, d] of the prefix's tensors, behind None for each of the others."""
        decoder, (layouts, behind, shape, kept, final), of_prefix = self._decoder, state, []
        tokens, places = _present([layouts[-1].tokens, layouts[-1].reads])
        grad = kernels.normalise_backward(grads[0].contiguous(), final.states, decoder.norm, final.scale)  # [N, H]
        grad = grad.new_zeros(len(tokens), grad.shape[1]).index_add_(0, places, grad)  # [B C, H]
        for index in reversed(range(len(decoder.layers))):
            layer, layout = decoder.layers[index], layouts[index]
            saved = kept.pop(index)
            between, (queries, keys, values) = decoder.backward_attention(layer, saved, grad, layout)
            of_prefix.append([sum_over_rows(tensor, behind.indexes, shape) for tensor in (keys, values)])
            if index:
                own = HeadGradients(queries, keys[:, :, shape[2] :], values[:, :, shape[2] :])  # [kv, B, T, d]
                grad = decoder.backward_input(layer, saved, AttentionGradients(between, own), layout)  # [B T, H]
        by_kind = zip(*reversed(of_prefix), strict=True)  # the keys of all layers, then their values
        return None, None, None, None, None, *(tensor for tensors in by_kind for tensor in tensors)


def _present(tensors: _Tensors) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def layer_prefix(prefix: Sequence[Tensor], layer: int, behind: RowPrompts | None) -> LayerKeyValues | None:
    """Return the keys and values of a layer [kv, B, P, d] behind which each row stands; None if there are none."""
    if behind is None:
        return None
    keys, values = prefix[layer], prefix[len(prefix) // 2 + layer]  # [K, kv, P, d]
    return LayerKeyValues(expand_to_rows(keys, behind.indexes), expand_to_rows(values, behind.indexes))


def _run_again(
    decoder: "FusedDecoder", layouts: Sequence[Layout], prefix: Sequence[Tensor], behind: RowPrompts | None,
    index: int, states: Tensor,
) -> Saved:  # fmt: skip
    """Return what a layer keeps for the backward pass, from the states [B T, H] before it."""
    before = layer_prefix(prefix, index, behind)
    _, saved = decoder.forward_layer(decoder.layers[index], states, layouts[index], before)
    return saved
