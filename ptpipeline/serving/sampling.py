"""Which token comes next: the likeliest one, or one that is drawn by its probability.

A row draws one number per token from dice of its own, so a seeded row gets the same tokens whichever rows are beside
it.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.serving.service import Sampling

LIKELIEST = 256  # tokens among which a nucleus is looked for first: to sort a whole vocabulary takes ten times as long


class Draw(NamedTuple):
    """How a row's tokens are drawn; `dice` is None if it takes the likeliest token."""

    temperature: float
    top_p: float
    dice: random.Random | None

    @classmethod
    def of(cls, sampling: Sampling) -> "Draw":
        """Throw new dice for a row."""
        dice = random.Random(sampling.seed) if sampling.temperature > 0 else None  # noqa: S311 - words are no secrets
        return cls(sampling.temperature, sampling.top_p, dice)


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """Return the next token of every row from its logits [B, V]; None for a row that has no finite highest one."""
    likeliest = logits.argmax(-1)  # [B]
    highest = logits.gather(1, likeliest[:, None])  # [B, 1]
    tokens: list[int | None] = [
        token if height < float("inf") else None  # not if it is no number either
        for token, height in zip(likeliest.tolist(), highest[:, 0].tolist(), strict=True)
    ]
    drawn = [row for row, draw in enumerate(draws) if draw.dice and tokens[row] is not None]
    if drawn:
        own = logits[drawn].double() - highest[drawn].double()  # so that no temperature overflows
        for row, token in zip(drawn, _draw(own, [draws[row] for row in drawn]), strict=True):
            tokens[row] = token
    return tokens


def _draw(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Return a token for each row of logits [n, V], whose highest is 0."""
    temperatures = torch.tensor([draw.temperature for draw in draws], dtype=logits.dtype, device=logits.device)
    shares = (logits / temperatures[:, None]).softmax(-1)  # [n, V]
    heights = torch.tensor([draw.dice.random() for draw in draws if draw.dice], dtype=logits.dtype).to(logits.device)
    tokens: list[int] = _find(shares, heights).tolist()
    limited = [row for row, draw in enumerate(draws) if draw.top_p < 1]
    if limited:
        limits = torch.tensor([draws[row].top_p for row in limited], dtype=logits.dtype, device=logits.device)
        for row, token in zip(limited, _find_in_nucleus(shares[limited], heights[limited], limits), strict=True):
            tokens[row] = token
    return tokens


def _find(shares: Tensor, heights: Tensor) -> Tensor:
    """Return the index [n] of each row's share [n, V] into which its height [n], of [0, 1) of their sum, falls."""
    sums = shares.cumsum(-1)  # [n, V]
    return torch.searchsorted(sums, heights[:, None] * sums[:, -1:], right=True)[:, 0].clamp(max=sums.shape[1] - 1)


def _find_in_nucleus(shares: Tensor, heights: Tensor, limits: Tensor) -> list[int]:
    """Return the same among the likeliest tokens whose shares sum up to each row's limit [n] (Holtzman et al. 2020).

    The token with which the sum passes the limit is the last of them.
    """
    ordered, tokens = shares.topk(min(LIKELIEST, shares.shape[1]))  # [n, 256], [n, 256]
    found = _find_in_order(ordered, tokens, heights, limits)  # [n]
    short = (ordered.sum(-1) < limits).nonzero()[:, 0]  # rows whose nucleus has more tokens
    if len(short):
        found[short] = _find_in_order(*shares[short].sort(-1, descending=True), heights[short], limits[short])
    own: list[int] = found.tolist()
    return own


def _find_in_order(ordered: Tensor, tokens: Tensor, heights: Tensor, limits: Tensor) -> Tensor:
    before = ordered.cumsum(-1) - ordered
    nucleus = ordered.masked_fill((before >= limits[:, None]) & (before > 0), 0)
    return tokens.gather(1, _find(nucleus, heights)[:, None])[:, 0]
