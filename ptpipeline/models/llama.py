"""Forward and backward of frozen Llama decoders by hand: no weight gradients, one product for maps of the same input.

Letters: B rows, T tokens of a row (padded), K prompts, P virtual tokens (padded), H width, I width of the MLP,
L layers, d a head's width, kv key/value heads with g query heads each, S = P + T keys, N states that are read,
C states read of one row at most. Tokens are flat in a pass, [B T, H]; queries are [kv, B, g T, d], keys and values
[kv, B, S, d]: attention is plain batched products. The last layer of the rows' pass has C queries a row: behind its
keys and values, read B C for B T and g C for g T.

Only gradients that reach a prompt are formed: none of weights, none below the first layer's attention in the rows'
pass. The last layer computes more than keys and values only for states that are read.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptpipeline.models import kernels
from ptpipeline.models.frozen import PrefixCache
from ptpipeline.models.kernels import HeadGradients, Heads, LayerKeyValues, linear
from ptpipeline.models.layout import Geometry, Layout, Reads, RowPrompts, expand_to_rows, sum_over_rows

ROPES = ("default", "linear", "llama3")  # those whose frequencies do not change with the length


class Layer(NamedTuple):
    """The weights of a frozen decoder layer: norms [H], maps [out, in]. The model's own maps are views of the fused."""

    norm: Tensor
    attention: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    epsilon: float
    mlp_epsilon: float


class Saved(NamedTuple):
    """What a layer's backward pass needs of its forward pass.

    `states` enter the layer, `between` are those between attention and MLP; each `scale` is 1 / their root mean square.
    """

    states: Tensor  # [B T, H]
    scale: Tensor  # [B T, 1]
    queries: Tensor  # [kv, B, g T, d]
    keys: Tensor  # [kv, B, S, d]
    values: Tensor  # [kv, B, S, d]
    weights: Tensor  # [kv, B, g T, S]
    between: Tensor  # [B T, H]
    mlp_scale: Tensor  # [B T, 1]
    gate_up: Tensor  # [B T, 2 I]


class AttentionGradients(NamedTuple):
    """Gradients of the states between attention and MLP [B T, H], and of the layer's heads."""

    between: Tensor
    heads: HeadGradients


class FusedLlama:
    """The prompt pass and the rows' pass of one frozen Llama; `of` says whether a model is one."""

    def __init__(self, model: Any) -> None:
        """Fuse the layers' maps in place: the model's own become views, so that no weight is in memory twice."""
        config, body = model.config, model.base_model
        groups = config.num_key_value_heads
        heads = Heads(0, groups, config.num_attention_heads // groups, body.layers[0].self_attn.head_dim)
        self.layers = [_fuse(layer) for layer in body.layers]
        self.norm, self.epsilon = body.norm.weight, body.norm.variance_epsilon
        self.geometry = Geometry(heads, body.rotary_emb, self.norm.dtype)
        self.embedding = model.get_input_embeddings()
        self.query_width = heads.groups * heads.shared * heads.width  # of the fused map; keys and values follow

    @classmethod
    def of(cls, model: Any) -> "FusedLlama | None":
        """Return the model's fused passes; None if it is no frozen Llama without biases, with SiLU and fixed rope."""
        from transformers.models.llama.modeling_llama import LlamaForCausalLM

        config = model.config
        if type(model) is not LlamaForCausalLM or any(parameter.requires_grad for parameter in model.parameters()):
            return None
        if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
            return None
        if config.rope_parameters["rope_type"] not in ROPES:
            return None
        with torch.inference_mode(False):  # else the joined weights could never take part in a backward pass
            return cls(model)

    def compute_prefix(self, embeds: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Return the keys of every layer, then their values, [K, kv, P, d] each.

        `embeds` [K, P, H] are prompts, padded left to their `lengths` [K]; gradients flow back to them. The keys and
        values of pads are finite and mean nothing.
        """
        grad = torch.is_grad_enabled() and embeds.requires_grad
        outputs: tuple[Tensor, ...] = _PromptPass.apply(embeds, lengths, self, grad)  # type: ignore[no-untyped-call]
        return outputs

    def compute_states(self, ids: Tensor, cache: PrefixCache | None, prompts: Tensor | None, reads: Reads) -> Tensor:
        """Return the final hidden states [N, H] of token rows `ids` [B, T], padded right, at `reads`.

        `prompts` [B] is the prompt of `cache` that each row follows. Without a cache it is None too.
        """
        tensors = () if cache is None else cache.tensors
        behind = None if cache is None or prompts is None else RowPrompts(prompts, cache.lengths[prompts])
        grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        states: Tensor = _RowPass.apply(ids, behind, reads, self, grad, *tensors)  # type: ignore[no-untyped-call]
        return states

    def forward_layer(
        self, layer: Layer, states: Tensor, layout: Layout, prefix: LayerKeyValues | None
    ) -> tuple[Tensor, Saved]:
        """Return the states [B T, H] behind one layer, and what its backward pass needs.

        `states` [B T, H] enter the layer; `prefix` [kv, B, P, d] stands before the rows' own keys and values.
        """
        heads, rotations = layout.heads, layout.rotations
        normed, scale = kernels.norm(states, layer.norm, layer.epsilon)  # [B T, H], [B T, 1]
        if layout.tokens is None:
            mapped = linear(normed, layer.attention)  # [B T, (g + 2) kv d]
            flat_queries, flat_keys_values = mapped[:, : self.query_width], mapped[:, self.query_width :]
        else:
            flat_queries = linear(normed[layout.tokens], layer.attention[: self.query_width])  # [B C, g kv d]
            flat_keys_values = linear(normed, layer.attention[self.query_width :])  # [B T, 2 kv d]
        queries = kernels.split_queries(flat_queries, rotations.queries, heads)  # [kv, B, g T, d]
        keys, values = kernels.split_keys_values(flat_keys_values, rotations.keys, heads, prefix)  # [kv, B, S, d]
        scores = torch.matmul(queries, keys.transpose(2, 3))  # [kv, B, g T, S]
        by_head = scores.view(heads.groups, heads.rows, heads.shared, -1, keys.shape[2])  # [kv, B, g, T, S]
        weights = kernels.softmax(by_head, layout.mask).view(scores.shape)  # [kv, B, g T, S]
        mixed = torch.matmul(weights, values)  # [kv, B, g T, d]
        mixed = mixed.view(heads.groups, heads.rows, heads.shared, -1, heads.width)  # [kv, B, g, T, d]
        joined = mixed.permute(1, 3, 0, 2, 4).reshape(-1, self.query_width)  # [B T, g kv d]
        around = states if layout.tokens is None else states[layout.tokens]  # [B T, H]
        between = linear(joined, layer.out, around)  # [B T, H]
        normed, mlp_scale = kernels.norm(between, layer.mlp_norm, layer.mlp_epsilon)  # [B T, H], [B T, 1]
        gate_up = linear(normed, layer.gate_up)  # [B T, 2 I]
        saved = Saved(states, scale, queries, keys, values, weights, between, mlp_scale, gate_up)
        return linear(kernels.swiglu(gate_up), layer.down, between), saved

    def backward_attention(self, layer: Layer, saved: Saved, grad: Tensor, layout: Layout) -> AttentionGradients:
        """Return the gradients inside a layer, from the gradient [B T, H] of its output.

        Those of keys and values are [kv, B, S, d]: of the prefix and of the layer's own tokens.
        """
        heads = layout.heads
        gate_up = kernels.swiglu_backward(linear(grad, layer.down.t()), saved.gate_up)  # [B T, 2 I]
        normed = linear(gate_up, layer.gate_up.t())  # [B T, H]
        between = kernels.norm_backward(normed, saved.between, layer.mlp_norm, saved.mlp_scale, grad)  # [B T, H]
        joined = linear(between, layer.out.t())  # [B T, g kv d]
        mixed = joined.view(heads.rows, -1, heads.groups, heads.shared, heads.width)  # [B, T, kv, g, d]
        mixed = mixed.permute(2, 0, 3, 1, 4).reshape(saved.queries.shape)  # [kv, B, g T, d]
        values = torch.matmul(saved.weights.transpose(2, 3), mixed)  # [kv, B, S, d]
        weights = torch.matmul(mixed, saved.values.transpose(2, 3))  # [kv, B, g T, S]
        scores = kernels.softmax_backward(weights, saved.weights)  # [kv, B, g T, S]
        keys = torch.matmul(scores.transpose(2, 3), saved.queries)  # [kv, B, S, d]
        return AttentionGradients(between, HeadGradients(torch.matmul(scores, saved.keys), keys, values))

    def backward_input(self, layer: Layer, saved: Saved, grads: AttentionGradients, layout: Layout) -> Tensor:
        """Return the gradient [B T, H] of a layer's input; keys and values are those of the layer's own tokens."""
        rotations, heads = layout.rotations, layout.heads
        if layout.tokens is None:
            mapped = kernels.split_heads_backward(grads.heads, rotations.keys, rotations.queries, heads)
            normed = linear(mapped, layer.attention.t())  # [B T, H]
            return kernels.norm_backward(normed, saved.states, layer.norm, saved.scale, grads.between)
        own = LayerKeyValues(grads.heads.keys, grads.heads.values)
        keys_values = kernels.split_keys_values_backward(own, rotations.keys, heads)  # [B T, 2 kv d]
        queries = kernels.split_queries_backward(grads.heads.queries, rotations.queries, heads)  # [B C, g kv d]
        normed = linear(keys_values, layer.attention[self.query_width :].t())  # [B T, H]
        normed.index_add_(0, layout.tokens, linear(queries, layer.attention[: self.query_width].t()))
        around = torch.zeros_like(saved.states).index_add_(0, layout.tokens, grads.between)  # [B T, H]
        return kernels.norm_backward(normed, saved.states, layer.norm, saved.scale, around)


class _PromptPass(torch.autograd.Function):
    """The prompt pass: every layer's keys and values; the last layer has nothing else. Here B = K and T = P."""

    @staticmethod
    def forward(ctx: Any, embeds: Tensor, lengths: Tensor, llama: FusedLlama, grad: bool) -> tuple[Tensor, ...]:
        layout = llama.geometry.lay_out_prompts(embeds.shape[1], lengths)
        states, own, saved = embeds.reshape(-1, embeds.shape[2]), [], []  # [K P, H]
        for layer in llama.layers[:-1]:
            states, of_layer = llama.forward_layer(layer, states, layout, None)
            own.append(LayerKeyValues(of_layer.keys, of_layer.values))
            saved += [of_layer] if grad else []
        last = llama.layers[-1]
        normed, scale = kernels.norm(states, last.norm, last.epsilon)  # [K P, H], [K P, 1]
        flat = linear(normed, last.attention[llama.query_width :])  # [K P, 2 kv d]
        own.append(kernels.split_keys_values(flat, layout.rotations.keys, layout.heads))
        ctx.llama, ctx.layout, ctx.saved, ctx.shape = llama, layout, saved, embeds.shape
        ctx.last = (states, scale) if grad else None
        by_kind = zip(*own, strict=True)  # the keys of all layers, then their values
        return tuple(tensor.transpose(0, 1) for tensors in by_kind for tensor in tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        llama, layout, (states, scale), count = ctx.llama, ctx.layout, ctx.last, len(ctx.llama.layers)
        turned = [grad.transpose(0, 1) for grad in grads]  # L times keys, then L times values [kv, K, P, d]
        outer = [LayerKeyValues(*pair) for pair in zip(turned[:count], turned[count:], strict=True)]
        last = llama.layers[-1]
        flat = kernels.split_keys_values_backward(outer[-1], layout.rotations.keys, layout.heads)  # [K P, 2 kv d]
        normed = linear(flat, last.attention[llama.query_width :].t())  # [K P, H]
        grad = kernels.norm_backward(normed, states, last.norm, scale, None)  # [K P, H]
        for layer, given in zip(reversed(llama.layers[:-1]), reversed(outer[:-1]), strict=True):
            saved = ctx.saved.pop()
            between, (queries, keys, values) = llama.backward_attention(layer, saved, grad, layout)
            heads = HeadGradients(queries, keys.add_(given.keys), values.add_(given.values))
            grad = llama.backward_input(layer, saved, AttentionGradients(between, heads), layout)  # [K P, H]
        return grad.view(ctx.shape), None, None, None


class _RowPass(torch.autograd.Function):
    """The rows' pass behind a prefix or none: the final states that are read; gradients of the prefix alone."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, behind: RowPrompts | None, reads: Reads, llama: FusedLlama, grad: bool, *prefix: Tensor
    ) -> Tensor:
        layouts = llama.geometry.lay_out_rows(ids, behind, prefix[0].shape[2] if prefix else 0, reads)
        states, saved, count = llama.embedding(ids).flatten(0, 1), [], len(llama.layers)  # [B T, H]
        for index, layer in enumerate(llama.layers):
            before = None if behind is None else _layer_prefix(prefix, index, behind.indexes)
            layout = layouts.last if index == count - 1 else layouts.inner
            states, of_layer = llama.forward_layer(layer, states, layout, before)
            saved += [of_layer] if grad else []
        states = states[layouts.last.reads]  # [N, H]
        normed, scale = kernels.norm(states, llama.norm, llama.epsilon)  # [N, H], [N, 1]
        ctx.llama, ctx.layouts, ctx.saved, ctx.behind = llama, layouts, saved, behind
        ctx.final, ctx.prefix_shape = (states, scale) if grad else None, prefix[0].shape if prefix else None
        return normed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        llama, layouts, prompts, shape = ctx.llama, ctx.layouts, ctx.behind.indexes, ctx.prefix_shape
        states, scale = ctx.final
        grad = kernels.norm_backward(grad.contiguous(), states, llama.norm, scale, None)  # [N, H]
        queries = grad.new_zeros(len(layouts.last.tokens), grad.shape[1])  # [B C, H]
        grad = queries.index_add_(0, layouts.last.reads, grad)  # [B C, H]
        width, of_prefix = shape[2], []
        for index in reversed(range(len(llama.layers))):
            saved, layer = ctx.saved.pop(), llama.layers[index]
            layout = layouts.last if index == len(llama.layers) - 1 else layouts.inner
            between, (queries, keys, values) = llama.backward_attention(layer, saved, grad, layout)
            of_prefix.append((sum_over_rows(keys, prompts, shape), sum_over_rows(values, prompts, shape)))
            if index:
                own = HeadGradients(queries, keys[:, :, width:], values[:, :, width:])  # [kv, B, T, d]
                grad = llama.backward_input(layer, saved, AttentionGradients(between, own), layout)  # [B T, H]
        by_kind = zip(*reversed(of_prefix), strict=True)  # the keys of all layers, then their values
        return None, None, None, None, None, *(tensor for tensors in by_kind for tensor in tensors)


def _layer_prefix(prefix: Sequence[Tensor], layer: int, prompts: Tensor) -> LayerKeyValues:
    """Return the keys and values of a layer [kv, B, P, d] behind which each row stands."""
    keys, values = prefix[layer], prefix[len(prefix) // 2 + layer]  # [K, kv, P, d]
    return LayerKeyValues(expand_to_rows(keys, prompts), expand_to_rows(values, prompts))


def _fuse(layer: Any) -> Layer:
    """Return a decoder layer's weights; maps of the same input are joined."""
    attention, mlp = layer.self_attn, layer.mlp
    norm, mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
    return Layer(
        norm=norm.weight,
        attention=_join([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=attention.o_proj.weight,
        mlp_norm=mlp_norm.weight,
        gate_up=_join([mlp.gate_proj, mlp.up_proj]),
        down=mlp.down_proj.weight,
        epsilon=norm.variance_epsilon,
        mlp_epsilon=mlp_norm.variance_epsilon,
    )


def _join(maps: Sequence[Any]) -> Tensor:
    """Return the maps' weights as one [out, in]; theirs become views of it."""
    whole = torch.cat([part.weight.detach() for part in maps])
    for part, view in zip(maps, torch.split(whole, [len(part.weight) for part in maps]), strict=True):
        part.weight.data = view
    return whole
