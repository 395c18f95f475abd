"""Rank classification: the log-likelihood of each label's words behind prompt and text (Lester et al. 2021, section 3).

The same function gives the development scores in training, the gate's evaluation and the served answers. On request it
ranks by log-likelihood per token, and subtracts what each label gets behind texts without content.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.batches import group_by_length
from ptpipeline.data.tokens import LabelTokens
from ptpipeline.models.frozen import FrozenBase, Input, PrefixCache

TOKENS_PER_PASS = 2048  # padded tokens in one forward pass: bounds memory, and keeps the processor busy


class Query(NamedTuple):
    """One rendered text: token ids, the labels to rank, the index in the cache of the prompt before it.

    `prior` is what `compute_prior` returns for that prompt, if it is known already.
    """

    ids: list[int]
    labels: LabelTokens
    prompt: int
    prior: Tensor | None = None


class _Sequence(NamedTuple):
    """One row of a pass: a text and the beginning of one or more labels, for the query of that index."""

    query: int
    input: Input


def rank(base: FrozenBase, cache: PrefixCache | None, queries: Sequence[Query]) -> list[Tensor]:
    """Return the score of every label, one float32 tensor [labels] per query, in order.

    A score is the label's log-likelihood in nats; per token, or less the prior, if the labels are to be ranked so.
    Passes are formed by length in a fixed order, so the same queries always run in the same batches.
    """
    scores = _compute_log_likelihoods(base, cache, queries)
    priors: dict[tuple[int, LabelTokens], Tensor] = {}
    for index, query in enumerate(queries):
        if query.labels.content_free:
            key = (query.prompt, query.labels)
            if query.prior is None and key not in priors:
                priors[key] = compute_prior(base, cache, query.labels, query.prompt)
            scores[index] -= priors[key] if query.prior is None else query.prior
    return scores


def compute_prior(base: FrozenBase, cache: PrefixCache | None, labels: LabelTokens, prompt: int) -> Tensor:
    """Return the log of each label's mean probability [labels] behind the texts without content.

    The label probabilities of each text sum to 1. A score less this is the log of `W p` with `W = diag(p_cf)^-1`
    (Zhao et al. 2021, section 4), up to a constant.
    """
    scores = _compute_log_likelihoods(base, cache, [Query(list(ids), labels, prompt) for ids in labels.content_free])
    return torch.stack(scores).log_softmax(-1).logsumexp(0) - math.log(len(scores))


def _compute_log_likelihoods(base: FrozenBase, cache: PrefixCache | None, queries: Sequence[Query]) -> list[Tensor]:
    """Return the log-likelihood of every label [labels] per query; per token if its labels are to be normalised."""
    scores = [torch.zeros(len(query.labels.ids)) for query in queries]
    with torch.inference_mode():
        for group in group_by_length(_build_sequences(queries), lambda row: row.input.length, TOKENS_PER_PASS):
            _add_scores(base, cache, queries, group, scores)
    return [
        score / _count_tokens(query.labels) if query.labels.normalised else score
        for score, query in zip(scores, queries, strict=True)
    ]


def _count_tokens(labels: LabelTokens) -> Tensor:
    return torch.tensor([float(len(tokens)) for tokens in labels.ids])


def _build_sequences(queries: Sequence[Query]) -> list[_Sequence]:
    """Return one row for each distinct beginning of a text's labels: a single row if all labels are one token."""
    rows = []
    for index, query in enumerate(queries):
        beginnings = sorted({label[:-1] for label in query.labels.ids} - {()}) or [()]
        rows += [_Sequence(index, Input(query.ids, begin, query.prompt)) for begin in beginnings]
    return rows


def _add_scores(
    base: FrozenBase, cache: PrefixCache | None, queries: Sequence[Query], group: list[_Sequence], scores: list[Tensor]
) -> None:
    """Add each label's log-likelihood to `scores`; a label is read from the first row that holds its beginning."""
    log_probs = base.compute_logits(base.compute_states(cache, [row.input for row in group])).log_softmax(-1).cpu()
    start = 0
    for row in group:
        labels = queries[row.query].labels
        for label, tokens in enumerate(labels.ids):
            if _find_beginning(labels, tokens) == row.input.continuation:
                for step, token in enumerate(tokens):
                    scores[row.query][label] += log_probs[start + step, token]
        start += row.input.state_count


def _find_beginning(labels: LabelTokens, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Return the beginning behind which a label is read: its own; for a label of one token the first that there is."""
    return tokens[:-1] or min((label[:-1] for label in labels.ids if len(label) > 1), default=())
