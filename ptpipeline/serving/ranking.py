"""Rank classification: the log-likelihood of each label's words behind prompt and text (Lester et al. 2021, section 3).

One function for development scores while training, for the gate's evaluation and for serving.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.batches import by_length
from ptpipeline.data.tokens import LabelTokens
from ptpipeline.models.causal import CausalBase, PrefixCache, make_batch

TOKENS_PER_PASS = 2048  # padded tokens in one forward pass: bounds memory, and keeps the processor busy


class Query(NamedTuple):
    """One rendered text: token ids, the labels to rank, and which prompt of the cache it follows."""

    ids: list[int]
    labels: LabelTokens
    member: int


class _Sequence(NamedTuple):
    """A text followed by the first words of one or more labels, as one row of a pass."""

    query: int
    start: int
    ids: list[int]
    continuation: tuple[int, ...]


def rank(base: CausalBase, prefix: PrefixCache | None, queries: Sequence[Query]) -> list[Tensor]:
    """Log-likelihood of every label, one float32 tensor [labels] per query, in order.

    Passes are formed by length in a fixed order, so the same queries always run in the same batches.
    """
    scores = [torch.zeros(len(query.labels.ids)) for query in queries]
    with torch.inference_mode():
        for group in by_length(_sequences(queries), lambda row: len(row.ids), TOKENS_PER_PASS):
            _score(base, prefix, queries, group, scores)
    return scores


def _sequences(queries: Sequence[Query]) -> list[_Sequence]:
    """One row for each distinct beginning of a text's labels: a single row where all labels are one token."""
    rows = []
    for index, query in enumerate(queries):
        beginnings = sorted({label[:-1] for label in query.labels.ids} - {()}) or [()]
        rows += [_Sequence(index, len(query.ids), query.ids + list(begin), begin) for begin in beginnings]
    return rows


def _score(base: CausalBase, prefix: PrefixCache | None, queries: Sequence[Query], group: list[_Sequence], scores: list[Tensor]) -> None:
    """Adds each label's log-likelihood to `scores`, reading a label from the first row that holds its beginning."""
    hidden = base.hidden(prefix, make_batch([row.ids for row in group], [queries[row.query].member for row in group]))
    wanted: list[tuple[int, int, int, int, int]] = []  # row, column, token, query, label
    for index, row in enumerate(group):
        for label, tokens in enumerate(queries[row.query].labels.ids):
            if _reads(queries[row.query].labels, tokens) == row.continuation:
                wanted += [(index, row.start - 1 + step, token, row.query, label) for step, token in enumerate(tokens)]
    places = sorted({(row, column) for row, column, *_ in wanted})
    at = {place: i for i, place in enumerate(places)}
    chosen = hidden[torch.tensor([p[0] for p in places]), torch.tensor([p[1] for p in places])]
    log_probs = base.logits(chosen).log_softmax(-1).cpu()
    for row_index, column, token, query, label in wanted:
        scores[query][label] += log_probs[at[row_index, column], token]


def _reads(labels: LabelTokens, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """The beginning behind which a label is read: its own, or the first there is where it is a single token."""
    return tokens[:-1] or min((label[:-1] for label in labels.ids if len(label) > 1), default=())
