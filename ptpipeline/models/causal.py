"""The frozen causal model: it consumes a prefix cache of keys and values, and a batch's own tokens.

Letters: B rows of a batch, T tokens, P virtual tokens, H width, L layers, K prompts. Positions are always explicit:
a row's own tokens start at the length of its prefix. Text is padded right; where P differs within a cache, its pads
stand left of the prompt, outermost.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptpipeline.errors import BaseModelError
from ptpipeline.models.attention import fused
from ptpipeline.models.frozen import FrozenBase, Input, KeyValues, PrefixCache, SoftPrompt, padded_batch, stack_caches
from ptpipeline.models.llama import FusedLlama


class _Batch(NamedTuple):
    """B rows of one pass: ids padded right [B, T], their lengths [B], the lengths of their prompts [B], the mask over
    prompt and text [B, P_max + T], and the model's own cache, which holds each row's prompt."""

    ids: Tensor
    lengths: Tensor
    offsets: Tensor
    mask: Tensor
    held: Any


class CausalBase(FrozenBase):
    """A decoder-only model, such as Llama, GPT-2 or Gemma."""

    @cached_property
    def llama(self) -> FusedLlama | None:
        """The model's passes by hand, where it is a Llama; any other goes through transformers' layers."""
        return FusedLlama.of(self.model)

    def prefix(self, prompts: Sequence[SoftPrompt]) -> PrefixCache:
        """Keys and values of K prompts: those of embeddings out of one pass, key-values as they are."""
        embedded = [prompt for prompt in prompts if isinstance(prompt, Tensor)]
        computed = self._prefix_pass(embedded) if embedded else None
        if computed is not None and len(embedded) == len(prompts):
            return computed
        singles = iter(_singles(computed) if computed else ())
        return stack_caches(
            [self._given(prompt) if isinstance(prompt, KeyValues) else next(singles) for prompt in prompts]
        )

    def states(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Tensor:
        """States [N, H] of rows behind their own prompts."""
        rows = torch.tensor([index for index, row in enumerate(inputs) for _ in range(row.states)], device=self.device)
        columns = torch.tensor(
            [len(row.text) - 1 + step for row in inputs for step in range(row.states)], device=self.device
        )
        if self.llama is None:
            return self._hidden(self._batch(cache, inputs))[rows, columns]
        ids, _ = padded_batch([[*row.text, *row.continuation] for row in inputs], self.device)
        if cache is None:
            return self.llama.states(ids, (), None, (rows, columns))
        members = torch.tensor([row.member for row in inputs], device=self.device)
        return self.llama.states(ids, cache.tensors, (cache.lengths, members), (rows, columns))

    def concatenated(self, prompts: Sequence[SoftPrompt], inputs: Sequence[Input]) -> Tensor:
        """`[prompt][text]` row by row; key-values, which no concatenation yields, stand in the model's own cache."""
        return torch.cat([self._row(prompts[row.member], row) for row in inputs])

    @torch.inference_mode()
    def decode(self, cache: PrefixCache | None, inputs: Sequence[Input], limit: int) -> list[list[int]]:
        """Greedy decoding with the cache; rows of any length and prompt together answer as each alone."""
        batch = self._batch(cache, inputs)
        hidden = self._hidden(batch)
        rows = torch.arange(len(inputs), device=self.device)
        states, seen = hidden[rows, batch.lengths - 1], batch.offsets + batch.lengths
        _pads_outermost(batch.held, batch.ids.shape[1] - batch.lengths)
        width = batch.held.layers[0].keys.shape[2]
        found: list[list[int]] = [[] for _ in inputs]
        going, ends = set(range(len(inputs))), self.ends
        for step in range(limit):
            tokens = self.logits(states).argmax(-1)
            going -= {row for row in going if int(tokens[row]) in ends}
            for row in going:
                found[row].append(int(tokens[row]))
            if not going or step == limit - 1:
                break
            mask = torch.arange(width + step + 1, device=self.device)[None] >= (width - seen)[:, None]
            states = self._run(
                input_ids=tokens[:, None],
                attention_mask=mask.long(),
                position_ids=(seen + step)[:, None],
                past_key_values=batch.held,
                use_cache=True,
            )[:, 0]
        return found

    def _row(self, prompt: SoftPrompt, row: Input) -> Tensor:
        ids = torch.tensor([*row.text, *row.continuation], device=self.device)
        with fused(self.model):
            if isinstance(prompt, KeyValues):
                cache = _model_cache([tensor[None] for tensor in (*prompt.key, *prompt.value)], self.device, self.dtype)
                return self._run(input_ids=ids[None], past_key_values=cache, use_cache=True)[0, -row.states :]
            text = self.embed(ids)
            joined = torch.cat([prompt.to(self.device, text.dtype), text])[None]
            return self._run(inputs_embeds=joined, use_cache=False)[0, -row.states :]

    def _prefix_pass(self, prompts: Sequence[Tensor]) -> PrefixCache:
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        width = int(lengths.max())
        padded = [torch.nn.functional.pad(p.to(self.device, self.dtype), (0, 0, width - len(p), 0)) for p in prompts]
        if self.llama is not None:
            return PrefixCache(self.llama.prefix(torch.stack(padded), lengths), lengths)
        slots = torch.arange(width, device=self.device)[None]
        mask = slots >= (width - lengths)[:, None]
        positions = (slots - (width - lengths)[:, None]).clamp(min=0)
        cache = _new_cache()
        self._run(
            inputs_embeds=torch.stack(padded),
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        self._check_cache(cache, width)
        return PrefixCache(
            (*(layer.keys for layer in cache.layers), *(layer.values for layer in cache.layers)), lengths
        )

    def _batch(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> "_Batch":
        ids, lengths = padded_batch([[*row.text, *row.continuation] for row in inputs], self.device)
        text_mask = torch.arange(ids.shape[1], device=self.device)[None] < lengths[:, None]
        if cache is None:
            return _Batch(ids, lengths, torch.zeros_like(lengths), text_mask, _new_cache())
        members = torch.tensor([row.member for row in inputs], device=self.device)
        offsets = cache.lengths[members]
        prefix_mask = torch.arange(cache.width, device=self.device)[None] >= (cache.width - offsets)[:, None]
        held = _model_cache([_gathered(tensor, members) for tensor in cache.tensors], self.device, self.dtype)
        return _Batch(ids, lengths, offsets, torch.cat([prefix_mask, text_mask], 1), held)

    def _hidden(self, batch: "_Batch") -> Tensor:
        """Last hidden states [B, T, H] of every token of the rows; the batch's cache grows by them."""
        positions = batch.offsets[:, None] + torch.arange(batch.ids.shape[1], device=self.device)[None]
        return self._run(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            position_ids=positions,
            past_key_values=batch.held,
            use_cache=True,
        )

    def _given(self, prompt: KeyValues) -> PrefixCache:
        """Key-values as a cache of one prompt; BaseModelError where their shape is not this model's."""
        config = self.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layers, found_heads, tokens, found_size = prompt.key.shape
        if (layers, found_heads, found_size) != (config.num_hidden_layers, heads, size):
            raise BaseModelError(
                f"base model {self.ref.name}: the prefix has {layers} layers of {found_heads} heads of {found_size}, "
                f"this model has {config.num_hidden_layers} of {heads} of {size}; train the prefix on this base"
            )
        tensors = tuple(tensor[None].to(self.device, self.dtype) for tensor in (*prompt.key, *prompt.value))
        return PrefixCache(tensors, torch.tensor([tokens], device=self.device))

    def _run(self, **inputs: Any) -> Tensor:
        states: Tensor = self.model.base_model(**inputs).last_hidden_state
        return states

    def _check_cache(self, cache: Any, width: int) -> None:
        if len(cache.layers) != self.model.config.num_hidden_layers or any(
            layer.keys.shape[2] != width for layer in cache.layers
        ):
            raise BaseModelError(
                f"base model {self.ref.name}: its layers keep no plain keys and values for each token "
                "(hybrid or state-space layers, or gradient checkpointing); such a base is not supported"
            )


def _singles(cache: PrefixCache) -> list[PrefixCache]:
    """One cache per prompt, of its own length."""
    if len(cache.lengths) == 1:
        return [cache]
    return [
        PrefixCache(
            tuple(tensor[index : index + 1, ..., cache.width - int(length) :, :] for tensor in cache.tensors),
            length[None],
        )
        for index, length in enumerate(cache.lengths)
    ]


def _gathered(tensor: Tensor, members: Tensor) -> Tensor:
    """[K, heads, P, d] -> [B, heads, P, d]; a single prompt is expanded without a copy."""
    if tensor.shape[0] == 1:
        return tensor.expand(len(members), -1, -1, -1)
    return tensor.index_select(0, members)


def _new_cache() -> Any:
    """A fresh, full-length cache for one forward: update grows it, and a sliding layer would drop slots."""
    from transformers import DynamicCache

    return DynamicCache()


def _model_cache(tensors: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Any:
    """A cache that holds these keys of all layers, then values; a layer's own `update` would copy them once more."""
    from transformers.cache_utils import DynamicLayer

    cache, layers = _new_cache(), len(tensors) // 2
    for keys, values in zip(tensors[:layers], tensors[layers:], strict=True):
        layer = DynamicLayer()
        keys, values = keys.to(device, dtype), values.to(device, dtype)
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _pads_outermost(cache: Any, pads: Tensor) -> None:
    """Move each row's pads [B] from behind its text to the left of its prompt: inside, they would widen a sliding
    window.
    """
    slots = cache.layers[0].keys.shape[2]
    order = (torch.arange(slots, device=pads.device)[None] - pads[:, None]) % slots
    for layer in cache.layers:
        index = order[:, None, :, None].expand_as(layer.keys)
        layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
