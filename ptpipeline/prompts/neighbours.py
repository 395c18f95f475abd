"""The vocabulary tokens nearest to each virtual token, by three measures, and how far the three agree.

Letters: P virtual tokens, H width, V vocabulary, k neighbours.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ptpipeline.errors import DataError
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import KeyValues, SoftPrompt
from ptpipeline.prompts.interpretation import MEASURES, PAIRS, Measure, NearTokens, Neighbour, Neighbours

BLOCK = 2**21  # numbers of the vocabulary that are in memory as float64 at once: 16 MiB
BLANK = "▁"
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # of byte-level BPE


class Nearest(NamedTuple):
    """Ids of the nearest vocabulary tokens [P, k], nearest first, and their cosine, dot product or distance [P, k]."""

    ids: Tensor
    values: Tensor


def find_neighbours(base: FrozenBase, prompt: SoftPrompt, k: int = 5) -> Neighbours:
    """Return the nearest tokens of the base's vocabulary; for keys and values, the reason why there are none."""
    if isinstance(prompt, KeyValues):
        return Neighbours(
            k=k,
            tokens=[],
            overlap={},
            absent="a prefix is keys and values inside the model: it has no embeddings to compare with the "
            "vocabulary's",
        )
    return compare_with_vocabulary(prompt, embed_vocabulary(base), make_token_printer(base), k)


def compare_with_vocabulary(
    embeddings: Tensor, vocabulary: Tensor, decode: Callable[[int], str], k: int = 5
) -> Neighbours:
    """Return the k nearest rows of `vocabulary` [V, H] to each row of `embeddings` [P, H], as readable tokens.

    `decode` gives the text of a token id. Raises what `find_nearest` raises.
    """
    nearest = find_nearest(embeddings, vocabulary, k)
    lists = {measure: _list_neighbours(listed, decode) for measure, listed in nearest.items()}
    tokens = [
        _compare_measures({measure: lists[measure][row] for measure in MEASURES}) for row in range(len(embeddings))
    ]
    return Neighbours(
        k=k,
        tokens=tokens,
        overlap={pair: sum(near.overlap[pair] for near in tokens) / len(tokens) for pair in tokens[0].overlap},
    )


def find_nearest(embeddings: Tensor, vocabulary: Tensor, k: int) -> dict[Measure, Nearest]:
    """Return the k nearest rows of `vocabulary` [V, H] to each of `embeddings` [P, H], by each measure.

    Computed in float64 and compared in float32, so that equal rows tie; of those the lowest ids come first. Raises
    DataError if the widths differ, a number is not finite, or the vocabulary has fewer than k tokens.
    """
    _check_embeddings(embeddings, vocabulary, k)
    prompt, rows = embeddings.detach().cpu().double(), max(1, BLOCK // vocabulary.shape[1])
    best: dict[Measure, Nearest] = {}
    for start in range(0, len(vocabulary), rows):
        for measure, values in _measure_block(prompt, vocabulary[start : start + rows].detach().cpu().double()).items():
            ids = torch.arange(start, start + values.shape[1]).expand_as(values)
            before = [best[measure]] if measure in best else []
            best[measure] = _keep_nearest(measure, [*before, Nearest(ids, values)], k)
    return best


def embed_vocabulary(base: FrozenBase) -> Tensor:
    """Return the embeddings [V, H] of all tokens of the tokenizer, as the model reads them: scaled in some families."""
    count = min(len(base.tokenizer), base.model.get_input_embeddings().weight.shape[0])
    return base.embed(torch.arange(count)).detach().float().cpu()


def make_token_printer(base: FrozenBase) -> Callable[[int], str]:
    """Return a function that shows a token of this base: blanks as `▁`, unprintable characters and bytes as escapes."""
    tokenizer = base.tokenizer
    byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
    added = tokenizer.added_tokens_decoder

    def show(token: int) -> str:
        piece = tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a hole in the vocabulary
            return f"<{token}>"
        return make_readable(piece, byte_level and token not in added)

    return show


def make_readable(piece: str, byte_level: bool) -> str:
    """Return a piece of the vocabulary as one printable word; `byte_level` if its characters stand for bytes."""
    if byte_level:
        piece = bytes(BYTES[character] for character in piece).decode("utf-8", errors="backslashreplace")
    shown = piece.replace(" ", BLANK)
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in shown
    )


def _check_embeddings(embeddings: Tensor, vocabulary: Tensor, k: int) -> None:
    if (
        embeddings.ndim != 2
        or vocabulary.ndim != 2
        or embeddings.shape[1] != vocabulary.shape[1]
        or not len(embeddings)
    ):
        raise DataError(
            f"neighbours: found embeddings {list(embeddings.shape)} and a vocabulary {list(vocabulary.shape)}; "
            "expected [P, H] and [V, H] of one width"
        )
    if not 1 <= k <= len(vocabulary):
        raise DataError(f"neighbours: k is {k}; choose 1 to {len(vocabulary)}, the size of the vocabulary")
    if not torch.isfinite(embeddings).all() or not torch.isfinite(vocabulary).all():
        raise DataError(
            "neighbours: embeddings or vocabulary hold numbers that are not finite, so nothing is near them; train the "
            "prompt again"
        )


def _measure_block(prompt: Tensor, block: Tensor) -> dict[Measure, Tensor]:
    """Return each measure [P, block] of prompt [P, H] and vocabulary rows [block, H]; a cosine with zeros is 0.

    The distance is summed over differences: squares would cancel.
    """
    dot = prompt @ block.T
    norms = prompt.norm(dim=1)[:, None] * block.norm(dim=1)[None]
    cosine = dot / norms.clamp_min(torch.finfo(torch.float64).tiny)
    distance = torch.cdist(prompt, block, compute_mode="donot_use_mm_for_euclid_dist")
    return {"cosine": cosine.float(), "dot": dot.float(), "euclidean": distance.float()}


def _keep_nearest(measure: Measure, parts: Sequence[Nearest], k: int) -> Nearest:
    """Return the k nearest of several parts, whose ids ascend: a stable sort then keeps the lowest ids of a tie."""
    ids, values = torch.cat([part.ids for part in parts], 1), torch.cat([part.values for part in parts], 1)
    order = values.sort(dim=1, descending=measure != "euclidean", stable=True).indices[:, :k]
    return Nearest(ids.gather(1, order), values.gather(1, order))


def _list_neighbours(nearest: Nearest, decode: Callable[[int], str]) -> list[list[Neighbour]]:
    rows = zip(nearest.ids.tolist(), nearest.values.tolist(), strict=True)
    return [
        [Neighbour(id=token, token=decode(token), value=value) for token, value in zip(ids, values, strict=True)]
        for ids, values in rows
    ]


def _compare_measures(lists: Mapping[Measure, list[Neighbour]]) -> NearTokens:
    sets = {measure: {neighbour.id for neighbour in nearest} for measure, nearest in lists.items()}
    overlap = {f"{one}/{other}": len(sets[one] & sets[other]) / len(sets[one] | sets[other]) for one, other in PAIRS}
    return NearTokens(nearest=dict(lists), overlap=overlap)
