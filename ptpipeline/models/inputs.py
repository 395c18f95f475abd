"""What the passes of every family take: soft prompts, rows of tokens, and the cache that rows consume of their prompts.

Letters: B rows, T tokens, P virtual tokens, H width, L layers, K prompts, kv key/value heads, d a head's width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class KeyValues(NamedTuple):
    """A soft prompt that is keys and values of its own in every layer: two tensors [L, kv, P, d]."""

    key: Tensor
    value: Tensor


SoftPrompt = Tensor | KeyValues  # embeddings [P, H], or keys and values


def list_tensors(prompt: SoftPrompt) -> list[Tensor]:
    """Return the prompt's tensors; dimension -2 of each counts the virtual tokens."""
    return [prompt.key, prompt.value] if isinstance(prompt, KeyValues) else [prompt]


def rebuild(prompt: SoftPrompt, tensors: Sequence[Tensor]) -> SoftPrompt:
    """Return a soft prompt of the same kind as `prompt` that holds these tensors."""
    return KeyValues(*tensors) if isinstance(prompt, KeyValues) else tensors[0]


def count_virtual_tokens(prompt: SoftPrompt) -> int:
    """Return P."""
    return int(list_tensors(prompt)[0].shape[-2])


class PrefixCache(NamedTuple):
    """What rows consume of K prompts: tensors [K, ..., P_max, width], and each prompt's own length [K].

    On a causal model these are the keys of all layers, then their values, [K, kv, P_max, d] each; on an encoder-decoder
    model the embeddings [K, P_max, H]. Slots left of a prompt's length are padding and masked away.
    """

    tensors: tuple[Tensor, ...]
    lengths: Tensor

    @property
    def width(self) -> int:
        """P_max, the padded length."""
        return self.tensors[0].shape[-2]


def pad_left(tensor: Tensor, width: int) -> Tensor:
    """Return [..., width, H] of [..., P, H], with zeros in front; a tensor of that width is returned as it is."""
    missing = width - tensor.shape[-2]
    return torch.nn.functional.pad(tensor, (0, 0, missing, 0)) if missing else tensor


def stack_caches(caches: Sequence[PrefixCache]) -> PrefixCache:
    """Return several caches as one: prompts in order, padded left to the longest."""
    width = max(cache.width for cache in caches)
    stacked = zip(*(cache.tensors for cache in caches), strict=True)
    tensors = tuple(torch.cat([pad_left(tensor, width) for tensor in of_layer]) for of_layer in stacked)
    return PrefixCache(tensors, torch.cat([cache.lengths for cache in caches]))


class Input(NamedTuple):
    """One row of a pass: the text, the tokens that follow it, and the index in the cache of the prompt before it.

    It yields 1 + len(continuation) states: behind the text, and behind each token of the continuation.
    """

    text: Sequence[int]
    continuation: Sequence[int]
    prompt: int

    @property
    def length(self) -> int:
        """Number of tokens that the model reads, without the prompt's."""
        return len(self.text) + len(self.continuation)

    @property
    def state_count(self) -> int:
        """Number of states that the row yields."""
        return 1 + len(self.continuation)


def index_prompts(inputs: Sequence[Input], device: torch.device) -> Tensor:
    """Return the index in the cache [B] of each row's prompt."""
    return torch.tensor([row.prompt for row in inputs], device=device)


def pad_batch(rows: Sequence[Sequence[int]], device: torch.device, width: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids padded right [B, T], and the rows' lengths [B]. A pad has any value, since lengths mask it.

    T is the longest row's length, or `width` if that is more.
    """
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), max(width, int(lengths.max())), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids.to(device), lengths.to(device)
