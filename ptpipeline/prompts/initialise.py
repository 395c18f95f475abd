"""Makes the first value of a soft prompt: tensors [P, H] in the base model's own embedding space. Never N(0, 1)."""

import torch
from torch import Tensor

from ptpipeline.errors import DataError
from ptpipeline.models.causal import CausalBase
from ptpipeline.task import TextInit, Tune

SAMPLED_ROWS = 5000  # Lester et al. 2021, section 3.2: the most frequent tokens, which BPE vocabularies list first


def initial_prompt(base: CausalBase, tune: Tune) -> Tensor:
    """The recipe's first prompt [P, H], float32; a text without tokens is a DataError."""
    if isinstance(tune.init, TextInit):
        ids = text_tokens(base, tune.init.text, tune.num_virtual_tokens)
    else:
        ids = sampled_vocab(base, tune.num_virtual_tokens, tune.seed)
    return base.embed(ids).detach().float()


def sampled_vocab(base: CausalBase, count: int, seed: int) -> Tensor:
    """[P] distinct ids out of the first 5,000 that are no special tokens; repeated only where P is larger."""
    special = set(base.tokenizer.all_special_ids)
    pool = torch.tensor([i for i in range(min(SAMPLED_ROWS + len(special), len(base.tokenizer))) if i not in special][:SAMPLED_ROWS])
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-count // len(pool))
    picks = torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(rounds)])[:count]
    return pool[picks]


def text_tokens(base: CausalBase, text: str, count: int) -> Tensor:
    """[P] ids of the text without special tokens, repeated or cut to the count."""
    ids = base.encode(text, False)
    if not ids:
        raise DataError(f"tune.init.text: {text!r} has no tokens for {base.ref.name}; give a text with words")
    return torch.tensor((ids * -(-count // len(ids)))[:count])
