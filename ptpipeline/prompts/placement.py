"""Where a soft prompt stands: before the tokenizer's BOS, which then belongs to the text, or behind it."""

from collections.abc import Callable, Sequence

import torch

from ptpipeline.errors import ContextError
from ptpipeline.models.inputs import KeyValues, SoftPrompt
from ptpipeline.models.vocabulary import Vocabulary
from ptpipeline.records.prompts import Placement


def place_prompt(base: Vocabulary, prompt: SoftPrompt, placement: Placement) -> SoftPrompt:
    """Return what the model reads before the text: the prompt [P, H], or `[BOS][prompt]` [1 + P, H]."""
    if placement == "before_bos" or isinstance(prompt, KeyValues):
        return prompt
    bos = base.embed(torch.tensor([_require_bos(base)])).to(prompt.device, prompt.dtype)
    return torch.cat([bos, prompt])


def count_extra_tokens(placement: Placement) -> int:
    """Return how many tokens stand before the text besides the virtual ones."""
    return 1 if placement == "after_bos" else 0


def build_text_encoder(base: Vocabulary, placement: Placement) -> Callable[[str, bool], list[int]]:
    """Return the base's tokenizer for texts behind such a prompt: without BOS if that stands before the prompt.

    Raises ContextError if the placement needs a BOS and the tokenizer puts none before a text.
    """
    if placement == "before_bos":
        return base.encode
    bos = _require_bos(base)
    return lambda text, special: drop_bos(base.encode(text, special), bos) if special else base.encode(text, False)


def drop_bos(ids: Sequence[int], bos: int | None) -> list[int]:
    """Return the token ids without BOS at their beginning: a chat template may write none."""
    return list(ids[1:] if bos is not None and list(ids[:1]) == [bos] else ids)


def _require_bos(base: Vocabulary) -> int:
    if base.bos is None:
        raise ContextError(
            f"tune.placement: after_bos, but the tokenizer of {base.ref.name} puts no BOS before a text; set it to "
            "before_bos"
        )
    return base.bos
