"""Forward and backward of frozen Llama decoders by hand: no weight gradients, one product for maps of the same input.

Letters: B rows, T tokens of a row (padded), K prompts, P virtual tokens (padded), H width, L layers, d a head's size,
kv key/value heads with g query heads each, S = P + T keys, C states read of a row at most. Tokens are flat in a pass,
[B T, H]; queries are [kv, B, g T, d], keys and values [kv, B, S, d]: attention is plain batched products.

Only gradients that reach a prompt are formed: none of weights, none below the first layer's attention in the rows'
pass. The last layer runs beyond its keys and values only where a state is read.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptpipeline.models import kernels
from ptpipeline.models.kernels import Heads, product

ROPES = ("default", "linear", "llama3")  # those whose frequencies do not change with the length


class Layer(NamedTuple):
    """A frozen decoder layer: maps [out, in], norms [H], the norms' epsilons. The model's own maps are views of the
    fused.
    """

    norm: Tensor
    attention: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    epsilons: tuple[float, float]


class Tables(NamedTuple):
    """Cosine and sine [B, T, d / 2] of the tokens' positions, for keys and, times the scale of the scores, for
    queries.
    """

    keys: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]


class Place(NamedTuple):
    """Where a layer's queries stand: heads and rows, tables, and the mask [B, 1, T, S] added to the scores.

    In a last layer also the flat token [B C] of each query, and in `slots` the query [N] of each state that was asked
    for.
    """

    heads: Heads
    tables: Tables
    mask: Tensor
    tokens: Tensor | None = None
    slots: Tensor | None = None


class Kept(NamedTuple):
    """What a layer's backward pass needs: states before and between its halves, 1 / their norms, and the halves'
    insides.
    """

    entered: Tensor
    scale: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor
    between: Tensor
    mlp_scale: Tensor
    gate_up: Tensor


Pair = tuple[Tensor, Tensor]


class FusedLlama:
    """The prompt pass and the rows' pass of one frozen Llama; `of` says whether a model is one."""

    def __init__(self, model: Any) -> None:
        """Fuses the layers' maps in place: the model's own become views, so that no weight is held twice."""
        config, body = model.config, model.base_model
        groups = config.num_key_value_heads
        self.heads = Heads(0, groups, config.num_attention_heads // groups, body.layers[0].self_attn.head_dim)
        self.layers = [_fused(layer) for layer in body.layers]
        self.norm, self.epsilon = body.norm.weight, body.norm.variance_epsilon
        self.rotary, self.embedding = body.rotary_emb, model.get_input_embeddings()
        self.split = self.heads.groups * self.heads.shared * self.heads.size

    @classmethod
    def of(cls, model: Any) -> "FusedLlama | None":
        """The model's fused passes, or None where it is not a frozen Llama without biases, with SiLU and a
        fixed rope.
        """
        from transformers.models.llama.modeling_llama import LlamaForCausalLM

        config = model.config
        if (
            type(model) is not LlamaForCausalLM
            or config.attention_bias
            or config.mlp_bias
            or config.hidden_act != "silu"
        ):
            return None
        if config.rope_parameters["rope_type"] not in ROPES or any(p.requires_grad for p in model.parameters()):
            return None
        with torch.inference_mode(False):  # else the joined weights could never take part in a backward pass
            return cls(model)

    def prefix(self, embeds: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Keys of every layer, then values, [K, kv, P, d] each, of prompts [K, P, H] padded left to their lengths [K].

        Gradients flow back to `embeds`; the keys and values of pads are finite and meaningless.
        """
        grad = torch.is_grad_enabled() and embeds.requires_grad
        outputs: tuple[Tensor, ...] = _Prompts.apply(embeds, lengths, self, grad)  # type: ignore[no-untyped-call]
        return outputs

    def states(self, ids: Tensor, prefix: Sequence[Tensor], behind: Pair | None, reads: Pair) -> Tensor:
        """Final hidden states [N, H] of token rows [B, T] padded right, at `reads`: rows [N] and columns [N].

        `prefix` is what `prefix` returns, or empty; `behind` then the prompts' lengths [K] and the prompt of each row
        [B].
        """
        grad = torch.is_grad_enabled() and any(part.requires_grad for part in prefix)
        states: Tensor = _Rows.apply(ids, behind, reads, self, grad, *prefix)  # type: ignore[no-untyped-call]
        return states

    def tables(self, positions: Tensor) -> Tables:
        """Rotation of the model's own rotary module at positions [B, T], in the type that rotations are computed in."""
        like = torch.empty((), dtype=kernels.wide(self.norm.dtype), device=positions.device)
        cos, sin = (table[..., : table.shape[-1] // 2].contiguous() for table in self.rotary(like, positions))
        scale = self.heads.size**-0.5
        return Tables((cos, sin), (cos * scale, sin * scale))

    def forward(self, layer: Layer, states: Tensor, place: Place, prefix: Pair | None) -> tuple[Tensor, Kept]:
        """One layer: states [B T, H], or [B C, H] where the place names tokens."""
        normed, scale = kernels.norm(states, layer.norm, layer.epsilons[0])
        heads, tables = place.heads, place.tables
        if place.tokens is None:
            mapped = product(normed, layer.attention)
            asked, told = mapped[:, : self.split], mapped[:, self.split :]
        else:
            asked, told = (
                product(normed[place.tokens], layer.attention[: self.split]),
                product(normed, layer.attention[self.split :]),
            )
        queries = kernels.queries(asked, *tables.queries, heads)
        keys, values = (
            kernels.keys_values_behind(told, *tables.keys, prefix, heads)
            if prefix
            else kernels.keys_values(told, *tables.keys, heads)
        )
        scores = torch.matmul(queries, keys.transpose(2, 3))
        shape = (heads.groups, heads.rows, heads.shared, -1, keys.shape[2])
        weights = kernels.softmax(scores.view(shape), place.mask).view(scores.shape)
        mixed = torch.matmul(weights, values).view(heads.groups, heads.rows, heads.shared, -1, heads.size)
        joined = mixed.permute(1, 3, 0, 2, 4).reshape(-1, self.split)
        between = product(joined, layer.out, states if place.tokens is None else states[place.tokens])
        normed, mlp_scale = kernels.norm(between, layer.mlp_norm, layer.epsilons[1])
        gate_up = product(normed, layer.gate_up)
        kept = Kept(states, scale, queries, keys, values, weights, between, mlp_scale, gate_up)
        return product(kernels.gate(gate_up), layer.down, between), kept

    def backward(self, layer: Layer, kept: Kept, grad: Tensor, place: Place) -> tuple[Tensor, Tensor, Pair]:
        """Gradients of the state between the layer's halves, and of its queries, and keys and values, from that of its
        output.
        """
        opened = kernels.gate_backward(product(grad, layer.down.t()), kept.gate_up)
        between = kernels.norm_backward(
            product(opened, layer.gate_up.t()), kept.between, layer.mlp_norm, kept.mlp_scale, grad
        )
        heads = place.heads
        mixed = product(between, layer.out.t()).view(heads.rows, -1, heads.groups, heads.shared, heads.size)
        mixed = mixed.permute(2, 0, 3, 1, 4).reshape(kept.queries.shape)
        values = torch.matmul(kept.weights.transpose(2, 3), mixed)
        scores = kernels.softmax_backward(torch.matmul(mixed, kept.values.transpose(2, 3)), kept.weights)
        keys = torch.matmul(scores.transpose(2, 3), kept.queries)
        return between, torch.matmul(scores, kept.keys), (keys, values)

    def below(self, layer: Layer, kept: Kept, grads: tuple[Tensor, Tensor, Pair], place: Place) -> Tensor:
        """Gradient of a layer's input from what `backward` returns, keys and values cut to the layer's own tokens."""
        between, queries, (keys, values) = grads
        tables, heads = place.tables, place.heads
        if place.tokens is None:
            mapped = kernels.heads_backward((queries, keys, values), tables.keys, tables.queries, heads)
            return kernels.norm_backward(
                product(mapped, layer.attention.t()), kept.entered, layer.norm, kept.scale, between
            )
        told = kernels.keys_values_backward(keys, values, *tables.keys, heads)
        asked = kernels.queries_backward(queries, *tables.queries, heads)
        normed = product(told, layer.attention[self.split :].t())
        normed.index_add_(0, place.tokens, product(asked, layer.attention[: self.split].t()))
        around = torch.zeros_like(kept.entered).index_add_(0, place.tokens, between)
        return kernels.norm_backward(normed, kept.entered, layer.norm, kept.scale, around)


class _Prompts(torch.autograd.Function):
    """The prompt pass: every layer's keys and values; the last layer has nothing else."""

    @staticmethod
    def forward(ctx: Any, embeds: Tensor, lengths: Tensor, llama: FusedLlama, grad: bool) -> tuple[Tensor, ...]:
        rows, tokens, width = embeds.shape
        slots = torch.arange(tokens, device=embeds.device)
        pads = (tokens - lengths)[:, None]
        seen = (slots >= pads)[:, None, :] & (slots <= slots[:, None]) | (slots == slots[:, None])
        place = Place(
            llama.heads._replace(rows=rows), llama.tables((slots - pads).clamp(min=0)), _additive(seen, embeds.dtype)
        )
        states, pairs, kept = embeds.reshape(-1, width), [], []
        for layer in llama.layers[:-1]:
            states, keep = llama.forward(layer, states, place, None)
            pairs.append((keep.keys, keep.values))
            kept += [keep] if grad else []
        last = llama.layers[-1]
        normed, scale = kernels.norm(states, last.norm, last.epsilons[0])
        pairs.append(
            kernels.keys_values(product(normed, last.attention[llama.split :]), *place.tables.keys, place.heads)
        )
        ctx.llama, ctx.place, ctx.kept, ctx.last, ctx.shape = (
            llama,
            place,
            kept,
            (states, scale) if grad else None,
            embeds.shape,
        )
        return tuple(part.transpose(0, 1) for parts in zip(*pairs, strict=True) for part in parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        llama, place, (states, scale) = ctx.llama, ctx.place, ctx.last
        turned = [grad.transpose(0, 1) for grad in grads]
        pairs = list(zip(turned[: len(llama.layers)], turned[len(llama.layers) :], strict=True))
        last = llama.layers[-1]
        keys, values = pairs[-1]
        told = kernels.keys_values_backward(keys, values, place.tables.keys[0], place.tables.keys[1], place.heads)
        grad = kernels.norm_backward(product(told, last.attention[llama.split :].t()), states, last.norm, scale, None)
        for layer, pair in zip(reversed(llama.layers[:-1]), reversed(pairs[:-1]), strict=True):
            kept = ctx.kept.pop()
            between, queries, (keys, values) = llama.backward(layer, kept, grad, place)
            grad = llama.below(layer, kept, (between, queries, (keys.add_(pair[0]), values.add_(pair[1]))), place)
        return grad.view(ctx.shape), None, None, None


class _Rows(torch.autograd.Function):
    """The rows' pass behind a prefix or none: final states where they are read; gradients of the prefix alone."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, behind: Pair | None, reads: Pair, llama: FusedLlama, grad: bool, *prefix: Tensor
    ) -> Tensor:
        place, last = _row_places(llama, ids, behind, reads, prefix[0].shape[2] if prefix else 0)
        states, kept, count = llama.embedding(ids).flatten(0, 1), [], len(llama.layers)
        for index, layer in enumerate(llama.layers):
            pair = (
                None
                if behind is None
                else (_for_rows(prefix[index], behind[1]), _for_rows(prefix[count + index], behind[1]))
            )
            states, keep = llama.forward(layer, states, last if index == count - 1 else place, pair)
            kept += [keep] if grad else []
        states = states[last.slots]
        normed, scale = kernels.norm(states, llama.norm, llama.epsilon)
        ctx.llama, ctx.places, ctx.kept, ctx.behind = llama, (place, last), kept, behind
        ctx.final, ctx.like = (states, scale) if grad else None, prefix[0].shape if prefix else None
        return normed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        llama, (place, last), (_, members), (states, scale) = ctx.llama, ctx.places, ctx.behind, ctx.final
        grad = kernels.norm_backward(grad.contiguous(), states, llama.norm, scale, None)
        grad = grad.new_zeros(len(last.tokens), grad.shape[1]).index_add_(0, last.slots, grad)
        before, found = ctx.like[2], []
        for index in reversed(range(len(llama.layers))):
            kept, layer, here = ctx.kept.pop(), llama.layers[index], last if index == len(llama.layers) - 1 else place
            between, queries, (keys, values) = llama.backward(layer, kept, grad, here)
            found.append((_for_prompts(keys, members, ctx.like), _for_prompts(values, members, ctx.like)))
            if index:
                grad = llama.below(layer, kept, (between, queries, (keys[:, :, before:], values[:, :, before:])), here)
        return None, None, None, None, None, *(part for parts in zip(*reversed(found), strict=True) for part in parts)


def _fused(layer: Any) -> Layer:
    """A decoder layer's weights, joined where maps share their input."""
    attention, mlp = layer.self_attn, layer.mlp
    norms = layer.input_layernorm, layer.post_attention_layernorm
    return Layer(
        norms[0].weight,
        _joined([attention.q_proj, attention.k_proj, attention.v_proj]),
        attention.o_proj.weight,
        norms[1].weight,
        _joined([mlp.gate_proj, mlp.up_proj]),
        mlp.down_proj.weight,
        (norms[0].variance_epsilon, norms[1].variance_epsilon),
    )


def _joined(maps: Sequence[Any]) -> Tensor:
    """The maps' weights as one [out, in], of which theirs become views."""
    whole = torch.cat([part.weight.detach() for part in maps])
    for part, view in zip(maps, torch.split(whole, [len(part.weight) for part in maps]), strict=True):
        part.weight.data = view
    return whole


def _row_places(llama: FusedLlama, ids: Tensor, behind: Pair | None, reads: Pair, before: int) -> tuple[Place, Place]:
    """Where the rows' queries stand in every layer but the last, and in the last."""
    rows, tokens = ids.shape
    slots = torch.arange(tokens, device=ids.device)
    offsets = slots.new_zeros(rows, 1) if behind is None else behind[0][behind[1]][:, None]
    prompt = (torch.arange(before, device=ids.device) >= before - offsets)[:, None].expand(-1, tokens, -1)
    seen = torch.cat([prompt, (slots <= slots[:, None]).expand(rows, -1, -1)], 2)
    heads, tables = llama.heads._replace(rows=rows), llama.tables(offsets + slots)
    columns, chosen = _grid(reads, rows)
    flat = (columns + tokens * torch.arange(rows, device=ids.device)[:, None]).flatten()
    last = torch.arange(rows, device=ids.device)[:, None], columns
    at = Tables(tables.keys, (tables.queries[0][last], tables.queries[1][last]))
    dtype = llama.norm.dtype
    return Place(heads, tables, _additive(seen, dtype)), Place(heads, at, _additive(seen[last], dtype), flat, chosen)


def _grid(reads: Pair, rows: int) -> Pair:
    """Columns [B, C] that are read of each row, its first column where it reads fewer, and the flat place [N] of each
    read.
    """
    owners, columns = reads
    counts = torch.bincount(owners, minlength=rows)
    order = torch.argsort(owners, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[owners[order]]
    width = int(counts.max())
    grid = columns.new_zeros(rows, width)
    grid[owners, ranks] = columns
    return grid, owners * width + ranks


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask [B, 1, T, S] of what is seen [B, T, S]."""
    mask = torch.zeros(seen.shape, dtype=kernels.wide(dtype), device=seen.device)
    return mask.masked_fill_(~seen, float("-inf"))[:, None]


def _for_rows(prefix: Tensor, members: Tensor) -> Tensor:
    """[K, kv, P, d] -> [kv, B, P, d], of each row's own prompt."""
    turned = prefix.transpose(0, 1)
    return turned.expand(-1, len(members), -1, -1) if len(prefix) == 1 else turned.index_select(1, members)


def _for_prompts(grad: Tensor, members: Tensor, shape: torch.Size) -> Tensor:
    """[kv, B, S, d] -> [K, kv, P, d], summed over each prompt's rows."""
    part = grad[:, :, : shape[2]]
    if shape[0] == 1:
        return part.sum(1)[None]
    return part.new_zeros(shape[1], shape[0], *shape[2:]).index_add_(1, members, part).transpose(0, 1)
