"""Answers of every kind of task behind one prefix cache: the likeliest label, or a greedily decoded text."""

from collections.abc import Sequence
from typing import NamedTuple

from ptpipeline.data.batches import group_by_length
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, PrefixCache
from ptpipeline.progress import count
from ptpipeline.serving.heads import share_heads
from ptpipeline.serving.ranking import Query, rank

TOKENS_PER_DECODE = 4096  # padded tokens that one decoding may grow to: bounds the memory of its keys and values


class Opening(NamedTuple):
    """One rendered text to continue: token ids, how many tokens to generate at most, the cache's prompt before it."""

    ids: list[int]
    limit: int
    prompt: int


def generate(base: FrozenBase, cache: PrefixCache | None, openings: Sequence[Opening]) -> list[str]:
    """Return the text that follows each opening, without white space at its ends; prompts may be mixed.

    Groups are formed by limit and length in a fixed order, so the same openings always run in the same batches.
    """
    texts = [""] * len(openings)
    cache, inputs = share_heads(base, cache, [Input(opening.ids, (), opening.prompt) for opening in openings])
    for limit in sorted({opening.limit for opening in openings}):  # beyond its own limit, a row could leave the context
        alike = [index for index, opening in enumerate(openings) if opening.limit == limit]
        groups = group_by_length(alike, lambda index: inputs[index].length + openings[index].limit, TOKENS_PER_DECODE)
        for group in count(groups, len(alike)):
            for index, ids in zip(group, base.decode(cache, [inputs[index] for index in group], limit), strict=True):
                texts[index] = _decode_text(base, ids)
    return texts


def answer(base: FrozenBase, cache: PrefixCache, requests: Sequence[Query | Opening]) -> list[str]:
    """Return the likeliest label's name for each query and the generated text for each opening, in order."""
    queries = [request for request in requests if isinstance(request, Query)]
    openings = [request for request in requests if isinstance(request, Opening)]
    scores = rank(base, cache, queries)
    names = iter([query.labels.names[int(own.argmax())] for query, own in zip(queries, scores, strict=True)])
    texts = iter(generate(base, cache, openings))
    return [next(names) if isinstance(request, Query) else next(texts) for request in requests]


def _decode_text(base: FrozenBase, ids: list[int]) -> str:
    text: str = base.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()
