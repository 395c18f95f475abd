"""The frozen causal model: it reads a prefix cache of keys and values, and behind it a batch's own tokens.

Letters: B rows of a batch, T tokens, P virtual tokens, H width, L layers, K prompts, N states that are read, kv
key/value heads, d a head's width. Positions are always explicit: a row's own tokens start at the length of its prefix.
Text is padded right; if P differs within a cache, the pads stand left of the prompt, outermost.
"""

import logging
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptpipeline.errors import BaseModelError
from ptpipeline.models.attention import use_fused_attention
from ptpipeline.models.decoder import FusedDecoder
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import (
    Input,
    KeyValues,
    PrefixCache,
    SoftPrompt,
    index_prompts,
    pad_batch,
    pad_left,
    stack_caches,
)
from ptpipeline.models.layout import Reads
from ptpipeline.models.slots import Begun, Slots, align_right, show_to_model
from ptpipeline.models.traits import UnknownTrait, read_longest

log = logging.getLogger(__name__)

WIDTH_STEP = 16  # tokens by which the rows of a pass are padded on a GPU


class _Batch(NamedTuple):
    """B rows of one pass: ids padded right [B, T], the lengths [B] of the rows and [B] of their prompts, the mask over
    prompt and text [B, P_max + T], and the model's own cache, which holds each row's prompt.
    """

    ids: Tensor
    lengths: Tensor
    offsets: Tensor
    mask: Tensor
    model_cache: Any


class Extended(NamedTuple):
    """The state [B, H] behind each of B texts, and a cache of B entries: each text's prompt with the text behind it."""

    states: Tensor
    cache: PrefixCache


class CausalBase(FrozenBase):
    """A decoder-only model, such as Llama, GPT-2 or Gemma."""

    @cached_property
    def fused(self) -> FusedDecoder | None:
        """The model's passes by hand if all its traits are known; any other model runs through transformers' layers."""
        try:
            return FusedDecoder(self.model)
        except UnknownTrait as unknown:
            _tell_general(self.ref.name, str(unknown))
            return None

    def compute_prefix(self, prompts: Sequence[SoftPrompt]) -> PrefixCache:
        """Return keys and values of K prompts: one pass computes those of embeddings, key-values stay as they are."""
        embedded = [prompt for prompt in prompts if isinstance(prompt, Tensor)]
        computed = self._compute_embedded_prefix(embedded) if embedded else None
        if computed is not None and len(embedded) == len(prompts):
            return computed
        singles = iter(_split_cache(computed) if computed else ())
        return stack_caches(
            [self._convert_key_values(prompt) if isinstance(prompt, KeyValues) else next(singles) for prompt in prompts]
        )

    def compute_states(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Tensor:
        """Return the states [N, H] of rows behind their own prompts."""
        total = sum(row.state_count for row in inputs)  # N
        reads = Reads.of([len(row.text) - 1 for row in inputs], [row.state_count for row in inputs], self.device)
        if self.fused is None or not self.reads_in_parts(cache, inputs):
            return reads.take(self._compute_hidden(self._build_batch(cache, inputs)))[:total]
        width = self._round_width(cache, max(row.length for row in inputs))
        ids, _ = pad_batch([[*row.text, *row.continuation] for row in inputs], self.device, width)  # [B, T], [B]
        prompts = None if cache is None else index_prompts(inputs, self.device)  # [B]
        return self.fused.compute_states(ids, cache, prompts, reads)[:total]

    def concatenate(self, prompts: Sequence[SoftPrompt], inputs: Sequence[Input]) -> Tensor:
        """Return the states [N, H] of `[prompt][text]`, row by row.

        Key-values, which no concatenation yields, stand in the model's own cache.
        """
        return torch.cat([self._concatenate_row(prompts[row.prompt], row) for row in inputs])

    def reaches(self, positions: int) -> bool:
        """Return whether rotations stay the same up to that many positions of prompt and text."""
        longest = read_longest(self.model.config)
        return longest is None or positions <= longest

    def reads_in_parts(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> bool:
        """Return whether rows may follow parts of their texts: not if rotations change with the length of a row."""
        return self.reaches(max(row.length for row in inputs) + (0 if cache is None else cache.width))

    @torch.inference_mode()
    def extend(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Extended:
        """Return the texts of B inputs as entries of a cache, which other rows may follow as they follow a prompt.

        Nothing of a continuation is read. No gradient flows back.
        """
        lengths = torch.tensor([len(row.text) for row in inputs], device=self.device)  # [B]
        offsets = torch.zeros_like(lengths) if cache is None else cache.lengths[index_prompts(inputs, self.device)]
        reads = Reads.of([len(row.text) - 1 for row in inputs], [1] * len(inputs), self.device)
        longest = int(lengths.max()) + (0 if cache is None else cache.width)
        if self.fused is None or not self.reaches(longest):
            batch = self._build_batch(cache, [row._replace(continuation=()) for row in inputs])
            states, layers = reads.take(self._compute_hidden(batch)), batch.model_cache.layers  # [B, H]
            tensors = (*(layer.keys for layer in layers), *(layer.values for layer in layers))
        else:
            ids, _ = pad_batch([row.text for row in inputs], self.device)  # [B, T]
            prompts = None if cache is None else index_prompts(inputs, self.device)  # [B]
            states, tensors = self.fused.extend(ids, cache, prompts, reads)
        return Extended(states, PrefixCache(align_right(tensors, lengths.max() - lengths), offsets + lengths))

    @torch.inference_mode()
    def decode(self, cache: PrefixCache | None, inputs: Sequence[Input], limit: int) -> list[list[int]]:
        """Return each row's greedy continuation; rows of any length and prompt together answer as each row alone."""
        given = [Input([*row.text, *row.continuation], (), row.prompt) for row in inputs]
        states, behind = self.extend(cache, given)  # [B, H]
        seen, width = behind.lengths, behind.width  # [B]
        model_cache = _fill_model_cache(behind.tensors, self.device, self.dtype)
        generated: list[list[int]] = [[] for _ in inputs]
        unfinished, ends = set(range(len(inputs))), self.end_tokens
        for step in range(limit):
            tokens = self.compute_logits(states).argmax(-1)  # [B]
            unfinished -= {row for row in unfinished if int(tokens[row]) in ends}
            for row in unfinished:
                generated[row].append(int(tokens[row]))
            if not unfinished or step == limit - 1:
                break
            slots = torch.arange(width + step + 1, device=self.device)
            mask = slots[None] >= (width - seen)[:, None]  # [B, P_max + T + step + 1]
            states = self._run(
                input_ids=tokens[:, None],
                attention_mask=mask.long(),
                position_ids=(seen + step)[:, None],
                past_key_values=model_cache,
                use_cache=True,
            )[:, 0]  # [B, H]
        return generated

    def begin(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Begun:
        """Read the texts of rows that are to be generated; the one cache holds each text behind its prompt."""
        extended = self.extend(cache, inputs)
        return Begun(extended.states, (extended.cache,))

    @torch.inference_mode()
    def step(self, slots: Sequence[Slots], tokens: Tensor) -> Tensor:
        """Return the states [B, H] behind one more token [B] of every row; the slots grow by it."""
        (own,) = slots
        own.reserve()
        if self.fused is not None and self.reaches(own.width + 1):
            states = self.fused.step(tokens, own)
        else:
            states = self._run(
                input_ids=tokens[:, None],
                attention_mask=own.mask(1).long(),
                position_ids=own.lengths[:, None],
                past_key_values=show_to_model(own),
                use_cache=True,
            )[:, 0]  # [B, H]
        own.advance()
        return states

    def steps_together(self, positions: int) -> bool:
        """Return whether rotations stay the same to that many positions: else those of a batch follow its longest."""
        return self.reaches(positions)

    def _round_width(self, cache: PrefixCache | None, longest: int) -> int:
        """Return T of rows of that length: on a GPU rounded up, so that few shapes recur."""
        rounded = -(-longest // WIDTH_STEP) * WIDTH_STEP
        reached = self.reaches(rounded + (0 if cache is None else cache.width))
        return rounded if self.device.type == "cuda" and reached else longest

    def _concatenate_row(self, prompt: SoftPrompt, row: Input) -> Tensor:
        ids = torch.tensor([*row.text, *row.continuation], device=self.device)  # [T]
        with use_fused_attention(self.model):
            if isinstance(prompt, KeyValues):
                own = [tensor[None] for tensor in (*prompt.key, *prompt.value)]  # L times keys, L times values
                cache = _fill_model_cache(own, self.device, self.dtype)
                return self._run(input_ids=ids[None], past_key_values=cache, use_cache=True)[0, -row.state_count :]
            text = self.embed(ids)  # [T, H]
            joined = torch.cat([prompt.to(self.device, text.dtype), text])[None]  # [1, P + T, H]
            return self._run(inputs_embeds=joined, use_cache=False)[0, -row.state_count :]

    def _compute_embedded_prefix(self, prompts: Sequence[Tensor]) -> PrefixCache:
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)  # [K]
        width = max(map(len, prompts))
        moved = [prompt.to(self.device, self.dtype) for prompt in prompts]
        embeds = torch.stack([pad_left(prompt, width) for prompt in moved])  # [K, P_max, H]
        if self.fused is not None and self.reaches(width):
            return PrefixCache(self.fused.compute_prefix(embeds, lengths), lengths)
        places = torch.arange(width, device=self.device)[None] - (width - lengths)[:, None]  # [K, P_max]
        model_cache = _new_cache()
        self._run(
            inputs_embeds=embeds,
            attention_mask=(places >= 0).long(),
            position_ids=places.clamp(min=0),
            past_key_values=model_cache,
            use_cache=True,
        )
        self._check_model_cache(model_cache, width)
        layers = model_cache.layers
        return PrefixCache((*(layer.keys for layer in layers), *(layer.values for layer in layers)), lengths)

    def _build_batch(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> _Batch:
        ids, lengths = pad_batch([[*row.text, *row.continuation] for row in inputs], self.device)  # [B, T], [B]
        text_mask = torch.arange(ids.shape[1], device=self.device)[None] < lengths[:, None]  # [B, T]
        if cache is None:
            return _Batch(ids, lengths, torch.zeros_like(lengths), text_mask, _new_cache())
        prompts = index_prompts(inputs, self.device)  # [B]
        offsets = cache.lengths[prompts]  # [B]
        slots = torch.arange(cache.width, device=self.device)  # [P_max]
        prompt_mask = slots[None] >= (cache.width - offsets)[:, None]  # [B, P_max]
        own = [_gather_prompts(tensor, prompts) for tensor in cache.tensors]
        model_cache = _fill_model_cache(own, self.device, self.dtype)
        return _Batch(ids, lengths, offsets, torch.cat([prompt_mask, text_mask], 1), model_cache)

    def _compute_hidden(self, batch: _Batch) -> Tensor:
        """Return the last hidden states [B, T, H] of every token of the rows; the batch's cache grows by them."""
        positions = batch.offsets[:, None] + torch.arange(batch.ids.shape[1], device=self.device)[None]  # [B, T]
        return self._run(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            position_ids=positions,
            past_key_values=batch.model_cache,
            use_cache=True,
        )

    def _convert_key_values(self, prompt: KeyValues) -> PrefixCache:
        """Return key-values as a cache of one prompt; raise BaseModelError if their shape is not this model's."""
        own_layers, own_heads, tokens, own_width = prompt.key.shape
        layers, heads, width = self._key_shape
        if (own_layers, own_heads, own_width) != (layers, heads, width):
            raise BaseModelError(
                f"base model {self.ref.name}: the prefix has {own_layers} layers of {own_heads} heads of {own_width}, "
                f"this model has {layers} of {heads} of {width}; train the prefix on this base"
            )
        tensors = tuple(tensor[None].to(self.device, self.dtype) for tensor in (*prompt.key, *prompt.value))
        return PrefixCache(tensors, torch.tensor([tokens], device=self.device))

    @cached_property
    def _key_shape(self) -> tuple[int, int, int]:
        """L, kv and d of the keys that the model keeps: configurations name them in many ways, or not at all."""
        with torch.inference_mode():
            tensors = self.compute_prefix([self.embed(torch.zeros(1, dtype=torch.long))]).tensors
        return len(tensors) // 2, tensors[0].shape[1], tensors[0].shape[3]

    def _run(self, **inputs: Any) -> Tensor:
        states: Tensor = self.model.base_model(**inputs).last_hidden_state
        return states

    def _check_model_cache(self, cache: Any, width: int) -> None:
        layers = cache.layers
        if len(layers) != self.model.config.num_hidden_layers or any(layer.keys.shape[2] != width for layer in layers):
            raise BaseModelError(
                f"base model {self.ref.name}: its layers do not keep a key and a value for each token (hybrid or "
                "state-space layers, or gradient checkpointing), so no prompt can stand before them; take another base"
            )


@cache
def _tell_general(name: str, trait: str) -> None:
    """Say once per process why a base is slower than it could be."""
    log.warning(
        "base model %s: the fast passes do not know its %s, so it runs through transformers' layers", name, trait
    )


def _split_cache(cache: PrefixCache) -> list[PrefixCache]:
    """Return one cache per prompt, of its own length."""
    if len(cache.lengths) == 1:
        return [cache]
    return [
        PrefixCache(
            tuple(tensor[index : index + 1, ..., cache.width - int(length) :, :] for tensor in cache.tensors),
            length[None],
        )
        for index, length in enumerate(cache.lengths)
    ]


def _gather_prompts(tensor: Tensor, prompts: Tensor) -> Tensor:
    """Return [B, kv, P, d] of [K, kv, P, d] for prompts [B]; a single prompt is expanded without a copy."""
    if tensor.shape[0] == 1:
        return tensor.expand(len(prompts), -1, -1, -1)
    return tensor.index_select(0, prompts)


def _new_cache() -> Any:
    """Return a fresh, full-length cache for one forward pass: it grows, and a sliding layer would drop slots."""
    from transformers import DynamicCache

    return DynamicCache()


def _fill_model_cache(tensors: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Any:
    """Return a cache that holds these keys of all layers, then values, [B, kv, P, d] each.

    A layer's own `update` would copy them once more.
    """
    from transformers.cache_utils import DynamicLayer

    cache, count = _new_cache(), len(tensors) // 2
    for keys, values in zip(tensors[:count], tensors[count:], strict=True):
        layer = DynamicLayer()
        keys, values = keys.to(device, dtype), values.to(device, dtype)
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
