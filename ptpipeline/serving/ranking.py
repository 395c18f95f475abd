"""Rank classification: the log-likelihood of each label's words behind prompt and text (Lester et al. 2021, section 3).

The same function gives the development scores in training, the gate's evaluation and the served answers. On request it
ranks by log-likelihood per token, and subtracts what each label gets behind texts without content.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.batches import group_by_length
from ptpipeline.data.tokens import LabelTokens
from ptpipeline.errors import ArtifactError
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, PrefixCache
from ptpipeline.progress import count
from ptpipeline.serving.heads import WORTH, narrow, share_heads

TOKENS_PER_CPU_PASS = 512  # padded tokens: with more, what a layer hands on no longer stays in a core's cache
KEPT_SLOTS = 2048  # tokens of prompts and texts whose keys and values are kept at once for the labels behind them
BRANCH_SLOTS = 8192  # such tokens, and those of labels behind them, in one forward pass


class Query(NamedTuple):
    """One rendered text: token ids, the labels to rank, the index in the cache of the prompt before it.

    `prior` is what `compute_prior` returns for that prompt, if it is known already.
    """

    ids: list[int]
    labels: LabelTokens
    prompt: int
    prior: Tensor | None = None


class _Label(NamedTuple):
    """A label of a query: the index of the query, of the label among the query's, and the label's tokens."""

    query: int
    number: int
    tokens: tuple[int, ...]


class _Row(NamedTuple):
    """One row of a pass, and the labels whose next tokens its states predict, from the token `start` of each."""

    input: Input
    labels: tuple[_Label, ...]
    start: int = 0


def choose_pass_tokens(base: FrozenBase) -> int:
    """Return how many padded tokens one pass over the base reads at most."""
    return TOKENS_PER_CPU_PASS if base.device.type == "cpu" else base.tokens_per_pass


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
    return average(
        _compute_log_likelihoods(base, cache, [Query(list(ids), labels, prompt) for ids in labels.content_free])
    )


def name_probabilities(what: str, names: Sequence[str], scores: Tensor) -> dict[str, float]:
    """Return the probability of each label, in their order; scores: of these labels [labels].

    Raises ArtifactError if they are no finite numbers: the prompt, whose name is `what`, drives the base out of range.
    """
    shares = scores.softmax(0).tolist()
    if not all(0 <= share <= 1 for share in shares):
        raise ArtifactError(f"{what}: its scores are no finite numbers; roll it back")
    return dict(zip(names, shares, strict=True))


def average(scores: Sequence[Tensor]) -> Tensor:
    """Return the log of each label's mean probability [labels] over texts with these scores [labels] each."""
    return torch.stack(list(scores)).log_softmax(-1).logsumexp(0) - math.log(len(scores))


def _compute_log_likelihoods(base: FrozenBase, cache: PrefixCache | None, queries: Sequence[Query]) -> list[Tensor]:
    """Return the log-likelihood of every label [labels] per query; per token if its labels are to be normalised."""
    scores = [torch.zeros(len(query.labels.ids)) for query in queries]
    tokens = choose_pass_tokens(base)
    with torch.inference_mode():
        branches = [_find_branches(index, query.labels) for index, query in enumerate(queries)]
        rows = [Input(query.ids, max(own, key=len), query.prompt) for query, own in zip(queries, branches, strict=True)]
        causal = narrow(base, cache, rows)
        cache, texts = share_heads(base, cache, rows)
        repeated = sum(len(text.text) * (len(own) - 1) for text, own in zip(texts, branches, strict=True))
        whole, branching = [], []
        for text, own in zip(texts, branches, strict=True):
            if len(own) > 1 and repeated >= WORTH and causal is not None:
                branching.append(
                    _Row(text._replace(continuation=()), tuple(label for labels in own.values() for label in labels))
                )
            else:
                whole += [_Row(text._replace(continuation=begin), labels) for begin, labels in own.items()]
        for group in count(group_by_length(whole, lambda row: row.input.length, tokens), len(whole)):
            _add_scores(base, base.compute_states(cache, [row.input for row in group]), group, scores)
        if causal is not None:
            before = 0 if cache is None else cache.width
            groups = group_by_length(branching, lambda row: before + row.input.length, KEPT_SLOTS)
            for group in count(groups, len(branching)):
                _score_branches(causal, cache, group, scores)
    return [normalise(score, query.labels) for score, query in zip(scores, queries, strict=True)]


def normalise(score: Tensor, labels: LabelTokens) -> Tensor:
    """Return log-likelihoods [labels] per token of their labels, if the labels are ranked so."""
    return score / torch.tensor([float(len(tokens)) for tokens in labels.ids]) if labels.normalised else score


def _find_branches(query: int, labels: LabelTokens) -> dict[tuple[int, ...], tuple[_Label, ...]]:
    """Return the distinct beginnings of a query's labels, each with the labels that are read behind it.

    A beginning is all of a label but its last token. A label of one token is read behind the first beginning that there
    is: so if all labels are one token, there is one beginning, without tokens.
    """
    beginnings = sorted({tokens[:-1] for tokens in labels.ids} - {()}) or [()]
    branches: dict[tuple[int, ...], tuple[_Label, ...]] = dict.fromkeys(beginnings, ())
    for index, tokens in enumerate(labels.ids):
        branches[tokens[:-1] or beginnings[0]] += (_Label(query, index, tokens),)
    return branches


def _score_branches(base: CausalBase, cache: PrefixCache | None, group: list[_Row], scores: list[Tensor]) -> None:
    """Score labels with several beginnings: each text runs once, then every beginning behind the cache of its text."""
    states, behind = base.extend(cache, [row.input for row in group])
    _add_scores(base, states, [row._replace(labels=_cut(row.labels)) for row in group], scores)
    rows = []
    for text, row in enumerate(group):
        branches: dict[tuple[int, ...], tuple[_Label, ...]] = defaultdict(tuple)
        for label in row.labels:
            if len(label.tokens) > 1:
                branches[label.tokens[:-1]] += (label,)
        rows += [_Row(Input(begin[:1], begin[1:], text), own, 1) for begin, own in branches.items()]
    for part in group_by_length(rows, lambda row: behind.width + row.input.length, BRANCH_SLOTS):
        _add_scores(base, base.compute_states(behind, [row.input for row in part]), part, scores)


def _cut(labels: Sequence[_Label]) -> tuple[_Label, ...]:
    """Return the labels with their first token alone, which the state behind the text predicts."""
    return tuple(label._replace(tokens=label.tokens[:1]) for label in labels)


def _add_scores(base: FrozenBase, states: Tensor, group: Sequence[_Row], scores: list[Tensor]) -> None:
    """Add to `scores` what the states [N, H] of a group's rows say of the labels that are read there."""
    log_probs = base.compute_logits(states).log_softmax(-1)  # [N, V]
    first, places, aims = 0, list[tuple[int, int]](), list[_Label]()
    for row in group:
        for label in row.labels:
            for step, token in enumerate(label.tokens[row.start :]):
                places.append((first + step, token))
                aims.append(label)
        first += row.input.state_count
    states_read, tokens = torch.tensor(places, device=log_probs.device).unbind(1)
    for label, value in zip(aims, log_probs[states_read, tokens].tolist(), strict=True):
        scores[label.query][label.number] += value
