"""Tokens are drawn by temperature and nucleus as a model of ten lines draws them, one number per token."""

import math
import random
from collections import Counter

import pytest
import torch

from ptpipeline.serving.answerer import Sampling
from ptpipeline.serving.sampling import LIKELIEST, Draw, choose


def draw_plainly(logits: list[float], temperature: float, top_p: float, height: float) -> int:
    """The ten lines: likeliest first within a nucleus, else in the vocabulary's order."""
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    shares = [(weight / sum(weights), token) for token, weight in enumerate(weights)]
    if top_p < 1:
        shares.sort(key=lambda pair: -pair[0])
        shares = [pair for at, pair in enumerate(shares) if at == 0 or sum(p for p, _ in shares[:at]) < top_p]
    height *= sum(share for share, _ in shares)
    for share, token in shares:
        height -= share
        if height < 0:
            return token
    return shares[-1][1]


@pytest.mark.parametrize("vocabulary", [5, 97, 3 * LIKELIEST])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.0])
def test_tokens_are_those_of_ten_plain_lines(vocabulary: int, temperature: float, top_p: float) -> None:
    torch.manual_seed(vocabulary)
    logits = torch.randn(40, vocabulary) * 2
    draws = [Draw.of(Sampling(temperature=temperature, top_p=top_p, seed=seed)) for seed in range(40)]
    expected = [
        draw_plainly(row.double().tolist(), temperature, top_p, random.Random(seed).random())
        for seed, row in enumerate(logits)
    ]
    assert choose(logits, draws) == expected


def test_tokens_come_as_often_as_their_probability_says() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draw, count = Draw.of(Sampling(temperature=0.8, seed=1)), 4000
    found = Counter(choose(logits, [draw])[0] for _ in range(count))
    for token, share in enumerate((logits[0] / 0.8).softmax(0).tolist()):
        assert found[token] / count == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / count))


def test_temperature_0_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    assert choose(logits, [Draw.of(Sampling(seed=3))] * 2) == [1, 0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e300])
def test_no_temperature_overflows(temperature: float) -> None:
    assert choose(torch.tensor([[1e30, -1e30, 0.0]]), [Draw.of(Sampling(temperature=temperature, seed=0))])[0] in {
        0,
        2,
        1,
    }


def test_logits_that_are_no_numbers_take_no_token_and_others_their_own() -> None:
    logits = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [-math.inf, 1.0], [-math.inf, -math.inf]])
    for temperature in (0.0, 1.0):
        draws = [Draw.of(Sampling(temperature=temperature, seed=2)) for _ in logits]
        tokens = choose(logits, draws)
        assert [token is None for token in tokens] == [False, True, True, False, True]


def test_a_row_draws_the_same_among_any_others() -> None:
    """A nucleus that needs a sorted vocabulary beside one that does not; bfloat16 logits, of which many are equal."""
    torch.manual_seed(0)
    flat = torch.zeros(1, 1000)
    peaked = torch.randn(1, 1000).bfloat16().float() * 5

    def throw() -> Draw:
        return Draw.of(Sampling(temperature=1.0, top_p=0.9, seed=7))

    assert choose(torch.cat([peaked, flat]), [throw(), throw()]) == [
        choose(peaked, [throw()])[0],
        choose(flat, [throw()])[0],
    ]


@pytest.mark.parametrize("seed", [1, 7, 2**63 - 1])
def test_a_seed_and_its_negative_draw_differently(seed: int) -> None:
    dice = [Draw.of(Sampling(temperature=1.0, seed=one)).dice for one in (seed, -seed, 2**63 - seed)]
    assert len({one.random() for one in dice if one}) == 3
