"""Rank classification against a brute-force oracle, and mixed batches against single questions."""

import torch

from ptpipeline.data.tokens import LabelTokens
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.inputs import Input
from ptpipeline.serving.ranking import Query, rank
from tests.models.families import family

SINGLE = LabelTokens(("a", "b"), ((41,), (42,)))
MIXED = LabelTokens(("a", "b", "c", "d"), ((41,), (42, 43), (42, 44, 45), (46, 47)))


def brute_force(base: CausalBase, prompt: torch.Tensor | None, query: Query) -> torch.Tensor:
    """Each label's log-likelihood, token by token, from whole concatenated sequences."""
    scores = []
    for label in query.labels.ids:
        rows = [Input(query.ids, label[:-1], 0)]
        states = base.compute_states(None, rows) if prompt is None else base.concatenate([prompt], rows)
        log_probs = base.compute_logits(states).log_softmax(-1)
        scores.append(sum(log_probs[i, token] for i, token in enumerate(label)))
    return torch.stack(scores)


def queries() -> list[Query]:
    torch.manual_seed(2)
    lengths = [3, 1, 9, 5, 5, 2]
    return [
        Query(torch.randint(0, 97, (n,)).tolist(), MIXED if i % 2 else SINGLE, i % 3) for i, n in enumerate(lengths)
    ]


def test_ranks_as_brute_force_does() -> None:
    base = family("llama")
    torch.manual_seed(3)
    prompts = [torch.randn(p, 32, dtype=torch.float64) * 0.2 for p in (2, 7, 4)]
    for query, scores in zip(queries(), rank(base, base.compute_prefix(prompts), queries()), strict=True):
        torch.testing.assert_close(
            scores.double(), brute_force(base, prompts[query.prompt], query).double(), rtol=1e-4, atol=1e-4
        )


def test_zero_shot_ranks_as_brute_force_does() -> None:
    base = family("gpt2")
    for query, scores in zip(queries(), rank(base, None, queries()), strict=True):
        torch.testing.assert_close(scores.double(), brute_force(base, None, query).double(), rtol=1e-4, atol=1e-4)


def test_mixed_batch_answers_as_single_questions() -> None:
    base = family("gemma3 sliding")
    prompts = [torch.randn(p, 32, dtype=torch.float64) * 0.2 for p in (2, 7, 4)]
    prefix = base.compute_prefix(prompts)
    together = rank(base, prefix, queries())
    for query, scores in zip(queries(), together, strict=True):
        torch.testing.assert_close(rank(base, prefix, [query])[0], scores, rtol=1e-5, atol=1e-5)


def test_no_queries_no_scores() -> None:
    assert rank(family("llama"), None, []) == []
