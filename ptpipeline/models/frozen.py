"""What every family of frozen base models offers: prompts become a prefix cache, rows behind it become hidden states.

Letters: B rows of a pass, T tokens, P virtual tokens, H width, L layers, K prompts, N states that are read, kv
key/value heads, d a head's width, V vocabulary.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ptpipeline.models.fetch import is_away, read_weights
from ptpipeline.models.inputs import Input, PrefixCache, SoftPrompt
from ptpipeline.models.memory import choose_pass_tokens, choose_prompt_tokens
from ptpipeline.models.slots import Begun, Slots
from ptpipeline.models.vocabulary import Vocabulary


@dataclass(frozen=True)
class FrozenBase(Vocabulary, ABC):
    """One frozen model in eval mode, with all its layers."""

    @abstractmethod
    def compute_prefix(self, prompts: Sequence[SoftPrompt]) -> PrefixCache:
        """Return the prefix cache of K prompts, computed in one pass; gradients flow back to each prompt.

        Raises BaseModelError for a prompt that this model has no place for.
        """

    @abstractmethod
    def compute_states(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Tensor:
        """Return the last hidden states [N, H] that predict each next token, inputs in order.

        Without a cache the rows follow no prompt.
        """

    @abstractmethod
    def concatenate(self, prompts: Sequence[SoftPrompt], inputs: Sequence[Input]) -> Tensor:
        """Return the same states by plain concatenation, one row at a time: the reference path."""

    @abstractmethod
    def decode(self, cache: PrefixCache | None, inputs: Sequence[Input], limit: int) -> list[list[int]]:
        """Return each input's greedy continuation: at most `limit` tokens, without the token that ends the text."""

    @abstractmethod
    def begin(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Begun:
        """Read the texts of rows that are to be generated, without their continuations. No gradient flows back."""

    @abstractmethod
    def step(self, slots: Sequence[Slots], tokens: Tensor) -> Tensor:
        """Return the states [B, H] behind one more token [B] of every row; the slots grow by it.

        slots: what the rows' caches were added to, one for each cache that `begin` returns.
        """

    def steps_together(self, positions: int) -> bool:
        """Return whether a row of so many tokens, prompt included, computes the same whichever rows are beside it."""
        return True

    @cached_property
    def tokens_per_pass(self) -> int:
        """How many padded tokens one training pass holds on this device."""
        return choose_pass_tokens(self.model)

    @property
    def prompt_tokens(self) -> int:
        """How many padded virtual tokens the prompts of one training step have together at most on this device."""
        return choose_prompt_tokens(self.tokens_per_pass)

    def compute_logits(self, states: Tensor) -> Tensor:
        """Return next-token logits [N, V] in float32 of states [N, H], capped or scaled as the model's own are."""
        config = self.model.config
        logits: Tensor = self.model.get_output_embeddings()(states).float()
        factor, divisor = getattr(config, "logit_scale", None) or 1.0, getattr(config, "logits_scaling", 1.0)
        if (factor, divisor) != (1, 1):  # most models have neither, and a pass over all logits takes its time
            logits = logits * factor / divisor
        cap = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    @cached_property
    def whole(self) -> bool:
        """Whether all weights lie on the device."""
        return not is_away(self.model)

    def to_float32(self) -> "FrozenBase":
        """Return a float32 copy of a whole base, for exact checks."""
        return replace(self, model=copy.deepcopy(self.model).float(), dtype=torch.float32)

    def digest_weights(self) -> str:
        """Return the sha256 of the weights in memory, which is the same after training as before."""
        digest = hashlib.sha256()
        for name, tensor in read_weights(self.model):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()
