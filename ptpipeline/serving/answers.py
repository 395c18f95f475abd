"""Answers of every kind of task behind one prefix cache: the likeliest label by ranking, or a text by greedy
decoding.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ptpipeline.data.batches import by_length
from ptpipeline.models.frozen import FrozenBase, Input, PrefixCache
from ptpipeline.serving.ranking import Query, rank

TOKENS_PER_DECODE = 4096  # padded tokens that one decoding may grow to: bounds the memory of its keys and values


class Opening(NamedTuple):
    """One rendered text to go on from: token ids, how many tokens to generate at most, and which prompt of the cache it
    follows.
    """

    ids: list[int]
    limit: int
    member: int

    @property
    def length(self) -> int:
        """Tokens that it may grow to, the prompt's apart."""
        return len(self.ids) + self.limit


def generate(base: FrozenBase, cache: PrefixCache | None, openings: Sequence[Opening]) -> list[str]:
    """The text that follows each opening, without white space at its ends; texts of many prompts are decoded together.

    Groups are formed by limit and length in a fixed order, so the same openings always run in the same batches.
    """
    texts = [""] * len(openings)
    for limit in sorted({opening.limit for opening in openings}):  # beyond its own limit, a row could leave the context
        alike = [index for index, opening in enumerate(openings) if opening.limit == limit]
        for group in by_length(alike, lambda index: openings[index].length, TOKENS_PER_DECODE):
            found = base.decode(
                cache, [Input(openings[index].ids, (), openings[index].member) for index in group], limit
            )
            for index, ids in zip(group, found, strict=True):
                texts[index] = _text(base, ids)
    return texts


def answers(base: FrozenBase, cache: PrefixCache, asked: Sequence[Query | Opening]) -> list[str]:
    """The likeliest label's name for each query, the generated text for each opening, in order."""
    queries, openings = (
        [one for one in asked if isinstance(one, Query)],
        [one for one in asked if isinstance(one, Opening)],
    )
    names = iter(
        [
            query.labels.names[int(scores.argmax())]
            for query, scores in zip(queries, rank(base, cache, queries), strict=True)
        ]
    )
    texts = iter(generate(base, cache, openings))
    return [next(names) if isinstance(one, Query) else next(texts) for one in asked]


def _text(base: FrozenBase, ids: list[int]) -> str:
    text: str = base.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()
