"""What every family of frozen base models offers: prompts become a prefix cache, rows behind it become hidden states.

Letters: B rows of a pass, T tokens, P virtual tokens, H width, L layers, K prompts, N states that are read.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptpipeline.records import BaseModelRef


class KeyValues(NamedTuple):
    """A soft prompt that is keys and values of its own in every layer: two tensors [L, heads_kv, P, d]."""

    key: Tensor
    value: Tensor


SoftPrompt = Tensor | KeyValues  # embeddings [P, H], or keys and values


def tensors_of(prompt: SoftPrompt) -> list[Tensor]:
    """The prompt's tensors; dimension -2 of each counts the virtual tokens."""
    return [prompt.key, prompt.value] if isinstance(prompt, KeyValues) else [prompt]


def like(prompt: SoftPrompt, tensors: Sequence[Tensor]) -> SoftPrompt:
    """These tensors as the same kind of soft prompt."""
    return KeyValues(*tensors) if isinstance(prompt, KeyValues) else tensors[0]


def virtual_tokens(prompt: SoftPrompt) -> int:
    """P."""
    return int(tensors_of(prompt)[0].shape[-2])


class PrefixCache(NamedTuple):
    """What rows consume of K prompts: tensors [K, ..., P_max, width], and each prompt's own length [K].

    On a causal model the keys of all layers, then their values, [K, heads_kv, P_max, d] each; on an encoder-decoder
    model the embeddings. Slots left of a prompt's length are padding and masked away.
    """

    tensors: tuple[Tensor, ...]
    lengths: Tensor

    @property
    def width(self) -> int:
        """P_max, the padded length."""
        return self.tensors[0].shape[-2]


def stack_caches(caches: Sequence[PrefixCache]) -> PrefixCache:
    """Several caches as one, prompts in order, padded left to the longest."""
    width = max(cache.width for cache in caches)

    def padded(tensors: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(t, (0, 0, width - t.shape[-2], 0)) for t in tensors])

    stacked = zip(*(cache.tensors for cache in caches), strict=True)
    return PrefixCache(tuple(map(padded, stacked)), torch.cat([cache.lengths for cache in caches]))


class Input(NamedTuple):
    """One row of a pass: the text, the tokens that follow it, and the prompt of the cache that it stands behind.

    It yields 1 + len(continuation) states: behind the text, and behind each token of the continuation.
    """

    text: Sequence[int]
    continuation: Sequence[int]
    member: int

    @property
    def length(self) -> int:
        """Tokens that the model reads of it, the prompt's apart."""
        return len(self.text) + len(self.continuation)

    @property
    def states(self) -> int:
        """How many states it yields."""
        return 1 + len(self.continuation)


def padded_batch(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids padded right [B, T], and the rows' lengths [B]; a pad's value is irrelevant, since lengths mask it."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids.to(device), lengths.to(device)


@dataclass(frozen=True)
class FrozenBase(ABC):
    """One frozen model in eval mode, its tokenizer, and what it hashes to."""

    model: Any
    tokenizer: Any
    ref: BaseModelRef
    dtype: torch.dtype
    context: int

    @abstractmethod
    def prefix(self, prompts: Sequence[SoftPrompt]) -> PrefixCache:
        """The prefix cache of K prompts in one pass; gradients flow back to each prompt.

        Raises BaseModelError for a prompt that this model has no place for.
        """

    @abstractmethod
    def states(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Tensor:
        """Last hidden states [N, H] that predict each next token, inputs in order; without any prompt where `cache` is
        None.
        """

    @abstractmethod
    def concatenated(self, prompts: Sequence[SoftPrompt], inputs: Sequence[Input]) -> Tensor:
        """The same states by plain concatenation, one row at a time: the reference path."""

    @abstractmethod
    def decode(self, cache: PrefixCache | None, inputs: Sequence[Input], limit: int) -> list[list[int]]:
        """Greedy continuation of each input, up to `limit` new tokens or the end of text, which is not returned."""

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = self.model.device
        return device

    @cached_property
    def bos(self) -> int | None:
        """The token that the tokenizer puts before every text; None where it puts none."""
        first: list[int] = self.tokenizer("a")["input_ids"][:1]
        return first[0] if first == [self.tokenizer.bos_token_id] else None

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a decoded text."""
        stated = getattr(self.model.generation_config, "eos_token_id", None)
        ends = stated if isinstance(stated, list) else [stated, self.tokenizer.eos_token_id]
        return frozenset(token for token in ends if token is not None)

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids of a text; `special` as the tokenizer adds BOS and the like around an input."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [..., H] from the embedding module, which scales them where the family does."""
        embedded: Tensor = self.model.get_input_embeddings()(ids.to(self.device))
        return embedded

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits [N, V] in float32 of states [N, H]."""
        logits: Tensor = self.model.lm_head(states).float()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def in_float32(self) -> "FrozenBase":
        """A float32 copy, for exact checks."""
        return replace(self, model=copy.deepcopy(self.model).float(), dtype=torch.float32)

    def weights_digest(self) -> str:
        """sha256 of the weights in memory: the same after training as before."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()
