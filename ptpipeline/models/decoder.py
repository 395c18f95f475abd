"""Forward and backward of frozen decoders by hand: no weight gradients, one product for maps of the same input.

What a decoder computes is read into its traits; every pass here works for all of them.

Letters: B rows, T tokens of a row (padded), K prompts, P virtual tokens (padded), H width, I width of the MLP,
L layers, d a head's width, kv key/value heads with g query heads each, S = P + T keys, N states that are read,
C states read of one row at most. Tokens are flat in a pass, [B T, H]; queries are [kv, B, g T, d], keys and values
[kv, B, S, d]: attention is plain batched products. The last layer of the rows' pass has C queries a row: behind its
keys and values, read B C for B T and g C for g T.

Only gradients that reach a prompt are formed: none of weights, none below the first layer's attention in the rows'
pass. The last layer computes more than keys and values only for states that are read. If what all layers keep for the
backward pass would not fit into memory, only the states before each layer are kept, and the layer runs again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ptpipeline.models import kernels
from ptpipeline.models.inputs import PrefixCache
from ptpipeline.models.kept import Normed, Saved
from ptpipeline.models.kernels import linear
from ptpipeline.models.layout import Geometry, Layout, Reads, RowPrompts, StepLayout
from ptpipeline.models.operands import AttentionGradients, LayerKeyValues, Norm
from ptpipeline.models.passes import PromptPass, RowPass, apply_pass, layer_prefix
from ptpipeline.models.recorded import Recorded
from ptpipeline.models.scores import attend, attend_backward, attend_step
from ptpipeline.models.slots import Slots
from ptpipeline.models.traits import Layer, Map, read_traits


class FusedDecoder:
    """The prompt pass and the rows' pass of one frozen decoder."""

    def __init__(self, model: Any) -> None:
        """Join the layers' maps in place: the model's own become views, so that no weight is in memory twice.

        Raises UnknownTrait if the model is no frozen decoder of a known architecture.
        """
        traits = read_traits(model)
        self.layers, self.layer_kinds, self.norm = traits.layers, traits.layer_kinds, traits.norm
        self.activation, self.score_cap = traits.activation, traits.score_cap
        self.residual_scale = traits.residual_scale
        self.embedding, self.embedding_scale = model.get_input_embeddings(), traits.embedding_scale
        heads = traits.heads
        self.query_width = heads.groups * heads.shared * heads.width  # of the joined map; keys and values follow
        self.key_width = heads.groups * heads.width
        self.geometry = Geometry(
            heads,
            traits.rotary,
            traits.kinds,
            self.layer_kinds[-1],
            traits.score_scale,
            model.dtype,
        )
        self.prompt_pass, self.row_pass = Recorded(PromptPass(self)), Recorded(RowPass(self))

    def compute_prefix(self, embeds: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Return the keys of every layer, then their values, [K, kv, P, d] each.

        `embeds` [K, P, H] are prompts, padded left to their `lengths` [K]; gradients flow back to them. The keys and
        values of pads are finite and mean nothing.
        """
        return apply_pass(self.prompt_pass, (embeds, lengths))

    def compute_states(self, ids: Tensor, cache: PrefixCache | None, prompts: Tensor | None, reads: Reads) -> Tensor:
        """Return the final hidden states [N, H] of token rows `ids` [B, T], padded right, at `reads`.

        `prompts` [B] is the prompt of `cache` that each row follows. Without a cache it is None too.
        """
        tensors = () if cache is None else cache.tensors
        behind = None if cache is None or prompts is None else RowPrompts(prompts, cache.lengths[prompts])
        own = (None, None) if behind is None else behind
        (states,) = apply_pass(self.row_pass, (*own, ids, *reads, *tensors))  # [N, H]
        return states

    def extend(
        self, ids: Tensor, cache: PrefixCache | None, prompts: Tensor | None, reads: Reads
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the same states [N, H], and every layer's keys, then values, [B, kv, P + T, d] each: those of each
        row's prompt, then the row's own. No gradient flows back.
        """
        tensors = () if cache is None else cache.tensors
        behind = None if cache is None or prompts is None else RowPrompts(prompts, cache.lengths[prompts])
        layouts, own = self.lay_out_rows(ids, behind, tensors, reads), []
        states = self.forward_rows(ids, behind, tensors, layouts, lambda saved: own.append(saved.own))  # [N, H]
        normed, _ = kernels.normalise(states, self.norm)  # [N, H]
        return normed, tuple(tensor.transpose(0, 1) for kind in zip(*own, strict=True) for tensor in kind)

    def step(self, tokens: Tensor, slots: Slots) -> Tensor:
        """Return the final hidden states [B, H] of one more token [B] of every row, whose keys and values go into the
        slots. No gradient flows back.
        """
        layouts = self.geometry.lay_out_step(slots.lengths, slots.width)
        states = self.scale_embeddings(self.embedding(tokens))  # [B, H]
        for index, kind in enumerate(self.layer_kinds):
            states = self._step_layer(index, states, layouts[kind], slots)
        return kernels.normalise(states, self.norm)[0]

    def lay_out_rows(
        self, ids: Tensor, behind: RowPrompts | None, prefix: Sequence[Tensor], reads: Reads
    ) -> list[Layout]:
        """Return every layer's layout of rows [B, T] behind the prompts of a prefix, if they follow any."""
        inner, last = self.geometry.lay_out_rows(ids, behind, prefix[0].shape[2] if prefix else 0, reads)
        return [*(inner[kind] for kind in self.layer_kinds[:-1]), last]

    def forward_rows(
        self, ids: Tensor, behind: RowPrompts | None, prefix: Sequence[Tensor], layouts: Sequence[Layout],
        keep: Callable[[Saved], None] | None,
    ) -> Tensor:  # fmt: skip
        """Return the states [N, H] that are read behind all layers, before the last norm; `keep` gets each layer's."""
        states = self.scale_embeddings(self.embedding(ids).flatten(0, 1))  # [B T, H]
        for index, layout in enumerate(layouts):
            before = layer_prefix(prefix, index, behind)
            states, saved = self.forward_layer(self.layers[index], states, layout, before)
            if keep:
                keep(saved)
        return states[layouts[-1].reads]  # [N, H]

    def forward_layer(
        self, layer: Layer, states: Tensor, layout: Layout, prefix: LayerKeyValues | None
    ) -> tuple[Tensor, Saved]:
        """Return the states [B T, H] behind one layer, and what its backward pass needs.

        `states` [B T, H] enter the layer; `prefix` [kv, B, P, d] stands before the rows' own keys and values.
        """
        heads, rotations = layout.heads, layout.rotations
        normed, scale = kernels.normalise(states, layer.norm)  # [B T, H]
        queried = normed if layout.tokens is None else normed[layout.tokens]
        flat_queries, flat = self._map_heads(layer, normed, queried)  # [B T, g kv d], [B T, kv d] each
        flat_queries, mapped_queries = _normalise_heads(flat_queries, layer.query_norm)
        flat_keys, mapped_keys = _normalise_heads(flat.keys, layer.key_norm)
        queries = kernels.split_queries(flat_queries, rotations.queries, heads)  # [kv, B, g T, d]
        own = kernels.split_keys_values(LayerKeyValues(flat_keys, flat.values), rotations.keys, heads, prefix)
        mixed, weights = attend(queries, own, layout, self.score_cap)  # [kv, B, g T, d]
        mixed = mixed.view(heads.groups, heads.rows, heads.shared, -1, heads.width)  # [kv, B, g, T, d]
        joined = mixed.permute(1, 3, 0, 2, 4).reshape(-1, self.query_width)  # [B T, g kv d]
        around = states if layout.tokens is None else states[layout.tokens]  # [B T, H]
        between, out = self._add(around, joined, layer.out, layer.out_norm)  # [B T, H]
        normed, mlp_scale = kernels.normalise(between, layer.mlp_norm)  # [B T, H]
        gate_up = linear(normed, layer.gate_up.weight, bias=layer.gate_up.bias)  # [B T, 2 I]
        after, down = self._add(between, kernels.gate(gate_up, self.activation), layer.down, layer.down_norm)
        saved = Saved(
            Normed(states, scale), mapped_queries, mapped_keys, queries, own, weights,
            out, Normed(between, mlp_scale), gate_up, down,
        )  # fmt: skip
        return after, saved

    def _step_layer(self, index: int, states: Tensor, layout: StepLayout, slots: Slots) -> Tensor:
        """Return the states [B, H] behind one layer of one token per row."""
        layer, heads, rotations = self.layers[index], self.geometry.heads, layout.rotations
        normed, _ = kernels.normalise(states, layer.norm)  # [B, H]
        flat_queries, flat = self._map_heads(layer, normed, normed)  # [B, g kv d], [B, kv d] each
        flat_queries, _ = _normalise_heads(flat_queries, layer.query_norm)
        flat_keys, _ = _normalise_heads(flat.keys, layer.key_norm)
        by_head = (len(states), 1, heads.groups, heads.width)
        queries = kernels.rotate(flat_queries.view(*by_head[:3], heads.shared, heads.width), rotations.queries)
        own = slots.write(
            index, kernels.rotate(flat_keys.view(by_head), rotations.keys)[:, 0], flat.values.view(by_head)[:, 0]
        )
        mixed = attend_step(queries[:, 0], LayerKeyValues(*own), layout.mask, self.score_cap)  # [B, kv, g, d]
        between, _ = self._add(states, mixed.flatten(1), layer.out, layer.out_norm)  # [B, H]
        normed, _ = kernels.normalise(between, layer.mlp_norm)
        gate_up = linear(normed, layer.gate_up.weight, bias=layer.gate_up.bias)  # [B, 2 I]
        return self._add(between, kernels.gate(gate_up, self.activation), layer.down, layer.down_norm)[0]

    def scale_embeddings(self, states: Tensor) -> Tensor:
        """Return embeddings [N, H] as the first layer reads them; the same factor takes their gradient back."""
        return states if self.embedding_scale == 1 else states * self.embedding_scale

    def map_last_prompt(self, states: Tensor, layout: Layout) -> tuple[LayerKeyValues, Normed, Normed | None]:
        """Return the last layer's keys and values [kv, K, P, d] of prompts, and what their backward pass needs."""
        layer = self.layers[-1]
        normed, scale = kernels.normalise(states, layer.norm)  # [K P, H]
        flat = self._map_keys_values(layer, normed)
        flat_keys, mapped_keys = _normalise_heads(flat.keys, layer.key_norm)
        own = kernels.split_keys_values(LayerKeyValues(flat_keys, flat.values), layout.rotations.keys, layout.heads)
        return own, Normed(states, scale), mapped_keys

    def backward_last_prompt(
        self, grad: LayerKeyValues, before: Normed, mapped_keys: Normed | None, layout: Layout
    ) -> Tensor:
        """Return the gradient [K P, H] of the states before the last layer, from that of its keys and values."""
        layer = self.layers[-1]
        normed = self._unmap_keys_values(layer, grad, mapped_keys, layout)  # [K P, H]
        return kernels.normalise_backward(normed, before.states, layer.norm, before.scale)

    def backward_attention(self, layer: Layer, saved: Saved, grad: Tensor, layout: Layout) -> AttentionGradients:
        """Return the gradients inside a layer, from the gradient [B T, H] of its output.

        Those of keys and values are [kv, B, S, d]: of the prefix and of the layer's own tokens.
        """
        heads = layout.heads
        added = self._add_backward(grad, layer.down_norm, saved.down)  # [B T, H]
        gate_up = kernels.gate_backward(linear(added, layer.down.weight.t()), saved.gate_up, self.activation)
        normed = linear(gate_up, layer.gate_up.weight.t())  # [B T, H]
        between = kernels.normalise_backward(normed, saved.between.states, layer.mlp_norm, saved.between.scale, grad)
        added = self._add_backward(between, layer.out_norm, saved.out)  # [B T, H]
        joined = linear(added, layer.out.weight.t())  # [B T, g kv d]
        mixed = joined.view(heads.rows, -1, heads.groups, heads.shared, heads.width)  # [B, T, kv, g, d]
        mixed = mixed.permute(2, 0, 3, 1, 4).reshape(saved.queries.shape)  # [kv, B, g T, d]
        return AttentionGradients(
            between, attend_backward(mixed, saved.queries, saved.own, saved.weights, layout, self.score_cap)
        )

    def backward_input(self, layer: Layer, saved: Saved, grads: AttentionGradients, layout: Layout) -> Tensor:
        """Return the gradient [B T, H] of a layer's input; keys and values are those of the layer's own tokens."""
        queries = kernels.split_queries_backward(grads.heads.queries, layout.rotations.queries, layout.heads)
        queries = _normalise_heads_backward(queries, layer.query_norm, saved.mapped_queries)  # [B T, g kv d]
        own = LayerKeyValues(grads.heads.keys, grads.heads.values)
        weight = layer.attention.weight
        if layout.tokens is None:
            flat = self._flatten_keys_values(layer, own, saved.mapped_keys, layout)
            normed = linear(torch.cat([queries, *flat], 1), weight.t())  # [B T, H]
            around = grads.between
        else:
            normed = self._unmap_keys_values(layer, own, saved.mapped_keys, layout)  # [B T, H]
            normed.index_add_(0, layout.tokens, linear(queries, weight[: self.query_width].t()))
            around = torch.zeros_like(saved.before.states).index_add_(0, layout.tokens, grads.between)  # [B T, H]
        return kernels.normalise_backward(normed, saved.before.states, layer.norm, saved.before.scale, around)

    def _map_heads(self, layer: Layer, normed: Tensor, queried: Tensor) -> tuple[Tensor, LayerKeyValues]:
        """Return flat queries [N, g kv d] of the states that are queried, flat keys and values [B T, kv d] of all."""
        weight, bias = layer.attention
        if queried is not normed:
            of_queries = None if bias is None else bias[: self.query_width]
            queries = linear(queried, weight[: self.query_width], bias=of_queries)
            return queries, self._map_keys_values(layer, normed)
        mapped = linear(normed, weight, bias=bias)  # [B T, (g + 2) kv d]
        widths = [self.query_width, self.key_width, self.key_width]
        queries, keys, values = torch.split(mapped, widths, 1)
        return queries, LayerKeyValues(keys, values)

    def _map_keys_values(self, layer: Layer, normed: Tensor) -> LayerKeyValues:
        """Return flat keys and values [N, kv d] each, of normed states [N, H]."""
        weight, bias = layer.attention
        of_keys_values = None if bias is None else bias[self.query_width :]
        return LayerKeyValues(*linear(normed, weight[self.query_width :], bias=of_keys_values).chunk(2, 1))

    def _unmap_keys_values(
        self, layer: Layer, grad: LayerKeyValues, mapped_keys: Normed | None, layout: Layout
    ) -> Tensor:
        """Return the gradient [N, H] of the normed states, from those of keys and values [kv, B, T, d]."""
        flat = self._flatten_keys_values(layer, grad, mapped_keys, layout)
        return linear(torch.cat(flat, 1), layer.attention.weight[self.query_width :].t())

    def _flatten_keys_values(
        self, layer: Layer, grad: LayerKeyValues, mapped_keys: Normed | None, layout: Layout
    ) -> LayerKeyValues:
        """Return the gradients [N, kv d] of flat keys and values as they were mapped."""
        flat = kernels.split_keys_values_backward(grad, layout.rotations.keys)
        return flat._replace(keys=_normalise_heads_backward(flat.keys, layer.key_norm, mapped_keys))

    def _add(self, around: Tensor, states: Tensor, by: Map, norm: Norm | None) -> tuple[Tensor, Normed | None]:
        """Return `around` [N, H] plus the mapped states, behind the norm if there is one; and what that norm needs."""
        if norm is None and self.residual_scale == 1:
            return linear(states, by.weight, around, by.bias), None
        mapped = linear(states, by.weight, bias=by.bias)  # [N, H]
        added, scale = kernels.normalise(mapped, norm)
        return torch.add(around, added, alpha=self.residual_scale), None if norm is None else Normed(mapped, scale)

    def _add_backward(self, grad: Tensor, norm: Norm | None, mapped: Normed | None) -> Tensor:
        """Return the gradient [N, H] of the map's output, from that of the sum."""
        added = grad if self.residual_scale == 1 else grad * self.residual_scale
        return added if mapped is None else kernels.normalise_backward(added, mapped.states, norm, mapped.scale)


def _normalise_heads(flat: Tensor, norm: Norm | None) -> tuple[Tensor, Normed | None]:
    """Return flat heads [N, heads d] behind their norm, which is as wide as a head or as all of them."""
    if norm is None:
        return flat, None
    mapped = flat.view(len(flat), -1, len(norm.weight))  # [N, heads, d] or [N, 1, heads d]
    normed, scale = kernels.normalise(mapped, norm)
    return normed.flatten(1), Normed(mapped, scale)


def _normalise_heads_backward(grad: Tensor, norm: Norm | None, mapped: Normed | None) -> Tensor:
    """Return the gradient [N, heads d] of the flat heads before their norm."""
    if norm is None or mapped is None:
        return grad
    by_norm = grad.reshape(len(grad), -1, len(norm.weight))
    return kernels.normalise_backward(by_norm, mapped.states, norm, mapped.scale).flatten(1)
