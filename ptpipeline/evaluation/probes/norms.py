"""Whether a prompt's virtual tokens are of the size of real tokens: far beyond them it overpowers the text it stands
before.

Letters: P virtual tokens, H width, L layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ptpipeline.models.frozen import FrozenBase, KeyValues, list_tensors
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.initialise import compute_activations, sample_vocabulary
from ptpipeline.prompts.tensors import unpack
from ptpipeline.serving.engine import Engine

WORDS = 256  # real tokens whose keys and values a prefix is held against
BLOCK = 8192  # vocabulary rows at a time


def norms(engine: Engine, artifact: Artifact, members: Sequence[Artifact] = ()) -> dict[str, float]:
    """Norms of the virtual tokens over the median norm of the vocabulary's embeddings: their median and their largest;
    and the share of virtual tokens beyond the largest norm of the vocabulary.

    A prefix has no embeddings: its keys and values are held against those of 256 real tokens in the same layer and
    head, and each of them counts. An ensemble is given with its `members`, whose tokens count together.
    """
    prompts = [unpack(one, engine.base.ref) for one in members or [artifact]]
    pairs = [
        _of_prefix(engine.base, prompt) if isinstance(prompt, KeyValues) else _of_embeddings(engine.base, prompt)
        for prompt in prompts
    ]
    ratios, beyond = (torch.cat(column) for column in zip(*pairs, strict=True))
    return {
        "norms.median_ratio": float(ratios.median()),
        "norms.max_ratio": float(ratios.max()),
        "norms.beyond": float(beyond.float().mean()),
    }


def _of_embeddings(base: FrozenBase, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """Ratio to the median norm [P], and which lie beyond the largest [P]."""
    vocabulary, found = _vocabulary(base), prompt.float().norm(dim=-1)
    return found / vocabulary.median(), found > vocabulary.max()


def _vocabulary(base: FrozenBase) -> Tensor:
    """Norms [V] of the embeddings as the model reads them, which some families scale; rows of zeros are no tokens."""
    size = base.model.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        blocks = [
            base.embed(torch.arange(start, min(start + BLOCK, size))).float().norm(dim=-1).cpu()
            for start in range(0, size, BLOCK)
        ]
    found = torch.cat(blocks)
    return found[found > 0]


def _of_prefix(base: FrozenBase, prompt: KeyValues) -> tuple[Tensor, Tensor]:
    """The same of every key and value, [2 * L * heads * P]."""
    with torch.inference_mode():
        real = compute_activations(base, base.embed(sample_vocabulary(base, min(WORDS, base.context), seed=0)))
    ratios, beyond = [], []
    for ours, theirs in zip(list_tensors(prompt), list_tensors(real), strict=True):
        found, words = ours.float().norm(dim=-1), theirs.norm(dim=-1)  # [L, heads, P], [L, heads, words]
        ratios.append((found / words.median(-1, keepdim=True).values).flatten())
        beyond.append((found > words.max(-1, keepdim=True).values).flatten())
    return torch.cat(ratios), torch.cat(beyond)
