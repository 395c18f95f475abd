"""Where a soft prompt stands: before the tokenizer's BOS, which is then part of the text, or behind it."""

from collections.abc import Callable

import torch

from ptpipeline.errors import ContextError
from ptpipeline.models.frozen import FrozenBase, KeyValues, SoftPrompt
from ptpipeline.records import Placement


def place_prompt(base: FrozenBase, prompt: SoftPrompt, placement: Placement) -> SoftPrompt:
    """What the model reads in front of the text: the prompt, or `[BOS][prompt]`, one token longer."""
    if placement == "before_bos" or isinstance(prompt, KeyValues):
        return prompt
    bos = base.embed(torch.tensor([_bos(base)])).to(prompt.device, prompt.dtype)
    return torch.cat([bos, prompt])


def count_extra_tokens(placement: Placement) -> int:
    """How many tokens stand in front of the text besides the virtual ones."""
    return 1 if placement == "after_bos" else 0


def build_text_encoder(base: FrozenBase, placement: Placement) -> Callable[[str, bool], list[int]]:
    """The base's tokenizer for texts behind such a prompt: without BOS where that stands before the prompt.

    Raises ContextError where the tokenizer puts no BOS before a text.
    """
    if placement == "before_bos":
        return base.encode
    _bos(base)
    return lambda text, special: base.encode(text, special)[1 if special else 0 :]


def _bos(base: FrozenBase) -> int:
    if base.bos is None:
        raise ContextError(
            f"tune.placement: after_bos, but the tokenizer of {base.ref.name} puts no BOS before a text; take "
            "`before_bos`"
        )
    return base.bos
