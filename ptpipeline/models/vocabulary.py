"""A base model's tokenizer and its table of embeddings: what texts become before any layer reads them.

Letters: H width.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ptpipeline.models.plain import PlainEncoder

if TYPE_CHECKING:  # the passes run where nothing but torch, transformers and PEFT is installed (benchmarks/gpu.py)
    from ptpipeline.models.chat import ChatTemplate
    from ptpipeline.records.prompts import BaseModelRef


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer and embeddings, what the model hashes to, its compute type and its context length.

    `model` may have no layers: a gateway needs none.
    """

    model: Any
    tokenizer: Any
    ref: "BaseModelRef"
    dtype: torch.dtype
    context: int
    earlier: "BaseModelRef | None" = field(default=None, kw_only=True)
    chat: "ChatTemplate | None" = field(default=None, kw_only=True)

    @property
    def known(self) -> "tuple[BaseModelRef, ...]":
        """All fingerprints that prompts of this base may name: today's, and the one that the same files had before."""
        return (self.ref,) if self.earlier is None else (self.ref, self.earlier)

    @property
    def device(self) -> torch.device:
        """The device that computes, where the weights lie that fit into it."""
        device: torch.device = self.model.device
        return device

    @cached_property
    def bos(self) -> int | None:
        """The token that the tokenizer puts before every text; None if it puts none."""
        first = self.encode("a", True)[:1]
        return first[0] if first == [self.tokenizer.bos_token_id] else None

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a decoded text."""
        stated = getattr(self.model.generation_config, "eos_token_id", None)
        ends = stated if isinstance(stated, list) else [stated, self.tokenizer.eos_token_id]
        return frozenset(token for token in ends if isinstance(token, int))

    def encode(self, text: str, special: bool) -> list[int]:
        """Return the token ids of a text; with `special` those that the tokenizer adds around an input (BOS) too.

        No text becomes a control token: `</s>` is four characters here.
        """
        return self._plain.encode(text, special)

    @cached_property
    def _plain(self) -> PlainEncoder:
        return PlainEncoder(self.tokenizer)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings [..., H] of ids [...] from the embedding module, which scales them in some families."""
        embedded: Tensor = self.model.get_input_embeddings()(ids.to(self.device))
        return embedded
