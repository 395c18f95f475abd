"""Rank classification: the log-likelihood of each label's words behind prompt and text (Lester et al. 2021, section 3).

One function for development scores while training, for the gate's evaluation and for serving: on request it ranks by
log-likelihood per token, and takes off what each label gets behind texts without content.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.batches import by_length
from ptpipeline.data.tokens import LabelTokens
from ptpipeline.models.frozen import FrozenBase, Input, PrefixCache

TOKENS_PER_PASS = 2048  # padded tokens in one forward pass: bounds memory, and keeps the processor busy


class Query(NamedTuple):
    """One rendered text: token ids, the labels to rank, which prompt of the cache it follows, and that prompt's
    `prior`, if known.
    """

    ids: list[int]
    labels: LabelTokens
    member: int
    prior: Tensor | None = None


class _Sequence(NamedTuple):
    """One row of a pass: a text and the beginning of one or more labels, for the query of that index."""

    query: int
    input: Input


def rank(base: FrozenBase, cache: PrefixCache | None, queries: Sequence[Query]) -> list[Tensor]:
    """Score of every label, one float32 tensor [labels] per query, in order: its log-likelihood, or as its labels are
    to be ranked.

    Passes are formed by length in a fixed order, so the same queries always run in the same batches.
    """
    scores = _log_likelihoods(base, cache, queries)
    priors: dict[tuple[int, LabelTokens], Tensor] = {}
    for index, query in enumerate(queries):
        if query.labels.content_free:
            key = (query.member, query.labels)
            if query.prior is None and key not in priors:
                priors[key] = prior(base, cache, query.labels, query.member)
            scores[index] -= priors[key] if query.prior is None else query.prior
    return scores


def prior(base: FrozenBase, cache: PrefixCache | None, labels: LabelTokens, member: int) -> Tensor:
    """Log of each label's mean probability [labels] behind the texts without content, each text's label probabilities
    summing to 1.

    A score less this is the log of `W p` with `W = diag(p_cf)^-1` (Zhao et al. 2021, section 4), up to a constant.
    """
    scores = _log_likelihoods(base, cache, [Query(list(ids), labels, member) for ids in labels.content_free])
    return torch.stack(scores).log_softmax(-1).logsumexp(0) - math.log(len(scores))


def _log_likelihoods(base: FrozenBase, cache: PrefixCache | None, queries: Sequence[Query]) -> list[Tensor]:
    """Log-likelihood of every label, per token where its labels are to be normalised."""
    scores = [torch.zeros(len(query.labels.ids)) for query in queries]
    with torch.inference_mode():
        for group in by_length(_sequences(queries), lambda row: row.input.length, TOKENS_PER_PASS):
            _score(base, cache, queries, group, scores)
    return [
        score / _lengths(query.labels) if query.labels.normalised else score
        for score, query in zip(scores, queries, strict=True)
    ]


def _lengths(labels: LabelTokens) -> Tensor:
    return torch.tensor([float(len(tokens)) for tokens in labels.ids])


def _sequences(queries: Sequence[Query]) -> list[_Sequence]:
    """One row for each distinct beginning of a text's labels: a single row where all labels are one token."""
    rows = []
    for index, query in enumerate(queries):
        beginnings = sorted({label[:-1] for label in query.labels.ids} - {()}) or [()]
        rows += [_Sequence(index, Input(query.ids, begin, query.member)) for begin in beginnings]
    return rows


def _score(
    base: FrozenBase, cache: PrefixCache | None, queries: Sequence[Query], group: list[_Sequence], scores: list[Tensor]
) -> None:
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
