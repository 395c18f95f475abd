"""Whether a prompt's virtual tokens are as large as real tokens: a much larger prompt overpowers the text behind it.

Letters: P virtual tokens, H width, L layers, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import KeyValues, list_tensors
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.initialise import compute_activations, sample_vocabulary
from ptpipeline.prompts.tensors import unpack
from ptpipeline.serving.engine import Engine

WORDS = 256  # real tokens with whose keys and values a prefix is compared
BLOCK = 8192  # vocabulary rows at a time


def measure_norms(engine: Engine, artifact: Artifact, members: Sequence[Artifact] = ()) -> dict[str, float]:
    """Return the median and the largest ratio of virtual tokens' norms to the vocabulary's median norm, and the share
    of virtual tokens beyond the vocabulary's largest norm.

    A prefix has no embeddings: each of its keys and values is compared with those of 256 real tokens in the same layer
    and head. The tokens of an ensemble's `members` count together.
    """
    prompts = [unpack(one, *engine.base.known) for one in members or [artifact]]
    pairs = [
        _compare_prefix(engine.base, prompt)
        if isinstance(prompt, KeyValues)
        else _compare_embeddings(engine.base, prompt)
        for prompt in prompts
    ]
    ratios, beyond = (torch.cat(column) for column in zip(*pairs, strict=True))
    return {
        "norms.median_ratio": float(ratios.median()),
        "norms.max_ratio": float(ratios.max()),
        "norms.beyond": float(beyond.float().mean()),
    }


def _compare_embeddings(base: FrozenBase, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """The ratios to the median norm [P], and which tokens lie beyond the largest [P], of a prompt [P, H]."""
    vocabulary, sizes = _vocabulary_norms(base), prompt.float().norm(dim=-1)  # [V], [P]
    return sizes / vocabulary.median(), sizes > vocabulary.max()


def _vocabulary_norms(base: FrozenBase) -> Tensor:
    """The norms [V] of the embeddings as the model reads them, which some families scale; rows of zeros are unused."""
    size = base.model.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        blocks = [
            base.embed(torch.arange(start, min(start + BLOCK, size))).float().norm(dim=-1).cpu()
            for start in range(0, size, BLOCK)
        ]
    sizes = torch.cat(blocks)
    return sizes[sizes > 0]


def _compare_prefix(base: FrozenBase, prompt: KeyValues) -> tuple[Tensor, Tensor]:
    """The same ratios and flags of every key and value, [2 * L * heads * P]."""
    with torch.inference_mode():
        real = compute_activations(base, base.embed(sample_vocabulary(base, min(WORDS, base.context), seed=0)))
    ratios, beyond = [], []
    for ours, theirs in zip(list_tensors(prompt), list_tensors(real), strict=True):
        sizes, words = ours.float().norm(dim=-1), theirs.norm(dim=-1)  # [L, heads, P], [L, heads, words]
        ratios.append((sizes / words.median(-1, keepdim=True).values).flatten())
        beyond.append((sizes > words.max(-1, keepdim=True).values).flatten())
    return torch.cat(ratios), torch.cat(beyond)
