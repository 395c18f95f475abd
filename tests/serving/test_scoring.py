"""Length normalisation and contextual calibration against brute force, alone and mixed with plain prompts."""

import torch

from ptpipeline.data.tokens import LabelTokens, apply_scoring, label_tokens
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import PrefixCache
from ptpipeline.records.prompts import Scoring
from ptpipeline.serving.ranking import Query, compute_prior, rank
from ptpipeline.task.template import parse_template
from tests.models.families import family
from tests.serving.test_ranking import MIXED, SINGLE, brute_force

FREE = ((61, 62), (63,), (64, 65, 66))


def prompts() -> list[torch.Tensor]:
    torch.manual_seed(3)
    return [torch.randn(p, 32, dtype=torch.float64) * 0.5 for p in (2, 7, 4)]


def based() -> tuple[FrozenBase, PrefixCache]:
    base = family("llama")
    return base, base.compute_prefix(prompts())


def by_hand(base: FrozenBase, query: Query) -> torch.Tensor:
    """Scores of a query behind its own prompt."""
    return by_hand_behind(base, prompts()[query.prompt], query)


def by_hand_behind(base: FrozenBase, prompt: torch.Tensor, query: Query) -> torch.Tensor:
    """Scores of a query, text by text: per token if asked, divided by what content-free texts get."""
    labels = query.labels
    lengths = torch.tensor([len(ids) if labels.normalised else 1 for ids in labels.ids])
    likelihoods = [
        brute_force(base, prompt, query._replace(ids=list(ids))) / lengths for ids in (query.ids, *labels.content_free)
    ]
    if not labels.content_free:
        return likelihoods[0]
    free = torch.stack([one.softmax(-1) for one in likelihoods[1:]]).mean(0)
    return (likelihoods[0].exp() / free).log()


def queries() -> list[Query]:
    kinds = [
        SINGLE,
        MIXED,
        MIXED._replace(normalised=True),
        MIXED._replace(content_free=FREE),
        MIXED._replace(normalised=True, content_free=FREE),
        SINGLE._replace(content_free=FREE),
    ]
    behind = [(index + turn) % 3 for turn in range(2) for index in range(len(kinds))]  # each kind behind two prompts
    return [
        Query([7 + i, 50 - i, 3 * i][: 1 + i % 3], *asked)
        for i, asked in enumerate(zip(kinds * 2, behind, strict=True))
    ]


def test_scores_are_those_of_brute_force_in_mixed_batches() -> None:
    base, cache = based()
    for query, found in zip(queries(), rank(base, cache, queries()), strict=True):
        torch.testing.assert_close(found.double(), by_hand(base, query).double(), rtol=1e-4, atol=1e-4)


def test_a_prior_that_is_known_is_not_measured_again() -> None:
    base, cache = based()
    labels = MIXED._replace(content_free=FREE)
    known = compute_prior(base, cache, labels, 1)
    asked = Query([5, 6], labels, 1)
    torch.testing.assert_close(
        rank(base, cache, [asked._replace(prior=known)])[0], rank(base, cache, [asked])[0], rtol=0, atol=0
    )
    shifted = rank(base, cache, [asked._replace(prior=known + torch.arange(4.0))])[0]
    torch.testing.assert_close(shifted, rank(base, cache, [asked])[0] - torch.arange(4.0))


def test_calibrated_labels_are_alike_behind_a_single_text_without_content() -> None:
    base, cache = based()
    labels = MIXED._replace(content_free=FREE[:1])
    shares = rank(base, cache, [Query(list(FREE[0]), labels, 0)])[0].softmax(-1)
    torch.testing.assert_close(shares, torch.full((4,), 0.25))


def test_plain_labels_have_no_texts_without_content() -> None:
    by_word = dict(zip(("N/A", "[MASK]", "so:", " a", " b"), range(5), strict=True))

    def encode(text: str, special: bool) -> list[int]:
        return [by_word[text]] if text in by_word else [9] * len(text.split())

    plain = label_tokens("t", {"a": " a", "b": " b"}, encode)
    assert (
        apply_scoring(plain, Scoring(), parse_template("{text}"), 9, encode)
        == plain
        == LabelTokens(("a", "b"), ((3,), (4,)))
    )
    assert apply_scoring(plain, Scoring(calibrated=True), parse_template("{text}"), 9, encode).content_free == (
        (0,),
        (1,),
    )  # the empty text has no tokens
    assert apply_scoring(plain, Scoring(length_normalised=True), parse_template("{text}"), 9, encode).normalised
