"""The vocabulary tokens nearest to each virtual token, by three measures, and how little the three agree.

Letters: P virtual tokens, H width, V vocabulary, k neighbours.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ptpipeline.errors import DataError
from ptpipeline.models.frozen import FrozenBase, KeyValues, SoftPrompt
from ptpipeline.prompts.interpretation import MEASURES, PAIRS, Measure, NearTokens, Neighbour, Neighbours

BLOCK = 2**21  # numbers of the vocabulary that are held in float64 at once: 16 MiB
BLANK = "▁"
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # of byte-level BPE


class Nearest(NamedTuple):
    """Ids of the nearest vocabulary tokens [P, k], nearest first, and their cosine, dot product or distance [P, k]."""

    ids: Tensor
    values: Tensor


def find_neighbours(base: FrozenBase, prompt: SoftPrompt, k: int = 5) -> Neighbours:
    """The nearest tokens of the base's vocabulary; of keys and values it is stated that there are none."""
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
    """The k nearest rows of `vocabulary` [V, H] to each row of `embeddings` [P, H]; `decode` gives a token's readable
    text.

    Raises what `nearest` does.
    """
    lists = {measure: _lists(found, decode) for measure, found in find_nearest(embeddings, vocabulary, k).items()}
    tokens = [_near({measure: lists[measure][row] for measure in MEASURES}) for row in range(len(embeddings))]
    return Neighbours(
        k=k,
        tokens=tokens,
        overlap={pair: sum(near.overlap[pair] for near in tokens) / len(tokens) for pair in tokens[0].overlap},
    )


def find_nearest(embeddings: Tensor, vocabulary: Tensor, k: int) -> dict[Measure, Nearest]:
    """The k nearest rows of `vocabulary` [V, H] to each of `embeddings` [P, H], by each measure.

    Computed in float64 and compared in float32, so that equal rows tie; of those the lowest ids stand first. Raises
    DataError where the widths differ, a number is not finite, or the vocabulary has fewer than k tokens.
    """
    _check(embeddings, vocabulary, k)
    prompt, rows = embeddings.detach().cpu().double(), max(1, BLOCK // vocabulary.shape[1])
    best: dict[Measure, Nearest] = {}
    for start in range(0, len(vocabulary), rows):
        for measure, values in _values(prompt, vocabulary[start : start + rows].detach().cpu().double()).items():
            ids = torch.arange(start, start + values.shape[1]).expand_as(values)
            best[measure] = _first(measure, [*([best[measure]] if measure in best else []), Nearest(ids, values)], k)
    return best


def embed_vocabulary(base: FrozenBase) -> Tensor:
    """Embeddings [V, H] of all tokens that the tokenizer knows, as prompts see them: scaled where the family scales
    them.
    """
    count = min(len(base.tokenizer), base.model.get_input_embeddings().weight.shape[0])
    return base.embed(torch.arange(count)).detach().float().cpu()


def make_token_printer(base: FrozenBase) -> Callable[[int], str]:
    """How tokens of this base are shown: blanks as `▁`, and bytes that are no text, or none that is printed, as
    escapes.
    """
    tokenizer = base.tokenizer
    byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
    added = tokenizer.added_tokens_decoder

    def text(token: int) -> str:
        piece = tokenizer.convert_ids_to_tokens(token)
        return (
            f"<{token}>" if piece is None else make_readable(piece, byte_level and token not in added)
        )  # vocabularies may have holes

    return text


def make_readable(piece: str, byte_level: bool) -> str:
    """A piece of the vocabulary as one printable word; `byte_level` where its characters stand for bytes."""
    if byte_level:
        piece = bytes(BYTES[character] for character in piece).decode("utf-8", errors="backslashreplace")
    shown = piece.replace(" ", BLANK)
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in shown
    )


def _check(embeddings: Tensor, vocabulary: Tensor, k: int) -> None:
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
        raise DataError(f"neighbours: k is {k}; take 1 to {len(vocabulary)}, the size of the vocabulary")
    if not torch.isfinite(embeddings).all() or not torch.isfinite(vocabulary).all():
        raise DataError(
            "neighbours: embeddings or vocabulary hold numbers that are not finite, which are near to nothing"
        )


def _values(prompt: Tensor, block: Tensor) -> dict[Measure, Tensor]:
    """Each measure [P, block]; the cosine with a row of zeros is 0. The distance by differences, since squares would
    cancel.
    """
    dot = prompt @ block.T
    norms = prompt.norm(dim=1)[:, None] * block.norm(dim=1)[None]
    cosine = dot / norms.clamp_min(torch.finfo(torch.float64).tiny)
    distance = torch.cdist(prompt, block, compute_mode="donot_use_mm_for_euclid_dist")
    return {"cosine": cosine.float(), "dot": dot.float(), "euclidean": distance.float()}


def _first(measure: Measure, found: Sequence[Nearest], k: int) -> Nearest:
    """The k nearest of several, whose ids ascend from one to the next: a stable sort then keeps the lowest of those
    that tie.
    """
    ids, values = torch.cat([one.ids for one in found], 1), torch.cat([one.values for one in found], 1)
    order = values.sort(dim=1, descending=measure != "euclidean", stable=True).indices[:, :k]
    return Nearest(ids.gather(1, order), values.gather(1, order))


def _lists(found: Nearest, decode: Callable[[int], str]) -> list[list[Neighbour]]:
    rows = zip(found.ids.tolist(), found.values.tolist(), strict=True)
    return [
        [Neighbour(id=token, token=decode(token), value=value) for token, value in zip(ids, values, strict=True)]
        for ids, values in rows
    ]


def _near(lists: Mapping[Measure, list[Neighbour]]) -> NearTokens:
    sets = {measure: {neighbour.id for neighbour in found} for measure, found in lists.items()}
    overlap = {f"{one}/{other}": len(sets[one] & sets[other]) / len(sets[one] | sets[other]) for one, other in PAIRS}
    return NearTokens(nearest=dict(lists), overlap=overlap)
