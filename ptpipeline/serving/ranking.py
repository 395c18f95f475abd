"""Rank classification: the log-likelihood of each label's words behind prompt and text (Lester et al. 2021, section 3).

One function for development scores while training, for the gate's evaluation and for serving.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.batches import by_length
from ptpipeline.data.tokens import LabelTokens
from ptpipeline.models.frozen import FrozenBase, Input, PrefixCache

TOKENS_PER_PASS = 2048  # padded tokens in one forward pass: bounds memory, and keeps the processor busy


class Query(NamedTuple):
    """One rendered text: token ids, the labels to rank, and which prompt of the cache it follows."""

    ids: list[int]
    labels: LabelTokens
    member: int


class _Sequence(NamedTuple):
    """One row of a pass: a text and the beginning of one or more labels, for the query of that index."""

    query: int
    input: Input


def rank(base: FrozenBase, cache: PrefixCache | None, queries: Sequence[Query]) -> list[Tensor]:
    """Log-likelihood of every label, one float32 tensor [labels] per query, in order.

    Passes are formed by length in a fixed order, so the same queries always run in the same batches.
    """
    scores = [torch.zeros(len(query.labels.ids)) for query in queries]
    with torch.inference_mode():
        for group in by_length(_sequences(queries), lambda row: row.input.length, TOKENS_PER_PASS):
            _score(base, cache, queries, group, scores)
    return scores


def _sequences(queries: Sequence[Query]) -> list[_Sequence]:
    """One row for each distinct beginning of a text's labels: a single row where all labels are one token."""
    rows = []
    for index, query in enumerate(queries):
        beginnings = sorted({label[:-1] for label in query.labels.ids} - {()}) or [()]
        rows += [_Sequence(index, Input(query.ids, begin, query.member)) for begin in beginnings]
    return rows


def _score(base: FrozenBase, cache: PrefixCache | None, queries: Sequence[Query], group: list[_Sequence], scores: list[Tensor]) -> None:
    """Adds each label's log-likelihood to `scores`, reading a label from the first row that holds its beginning."""
    log_probs = base.logits(base.states(cache, [row.input for row in group])).log_softmax(-1).cpu()
    start = 0
    for row in group:
        labels = queries[row.query].labels
        for label, tokens in enumerate(labels.ids):
            if _reads(labels, tokens) == row.input.continuation:
                for step, token in enumerate(tokens):
                    scores[row.query][label] += log_probs[start + step, token]
        start += row.input.states


def _reads(labels: LabelTokens, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """The beginning behind which a label is read: its own, or the first there is where it is a single token."""
    return tokens[:-1] or min((label[:-1] for label in labels.ids if len(label) > 1), default=())
