"""Which token comes next: the likeliest one, or one that is drawn by its probability.

A row draws one number per token from dice of its own, so a seeded row gets the same tokens whichever rows are beside
it.
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.serving.answerer import Sampling

LIKELIEST = 256  # tokens among which a nucleus is looked for first: to sort a whole vocabulary takes ten times as long
COLDEST = 1e-30  # temperature; float32 knows none near 0

_SEEDS = 2**64  # seeds of 64 bits: Random itself draws the same for a seed and its negative


class Draw(NamedTuple):
    """How a row's tokens are drawn; `dice` is None if it takes the likeliest token."""

    temperature: float
    top_p: float
    dice: random.Random | None

    @classmethod
    def of(cls, sampling: Sampling) -> "Draw":
        """Throw new dice for a row."""
        seed = None if sampling.seed is None else sampling.seed % _SEEDS
        dice = random.Random(seed) if sampling.temperature > 0 else None  # noqa: S311 - words are no secrets
        return cls(sampling.temperature, sampling.top_p, dice)


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """Return the next token of every row from its logits [B, V]; None for a row that has no finite highest one."""
    likeliest = logits.argmax(-1)  # [B]
    highest = logits.gather(1, likeliest[:, None])  # [B, 1]
    tokens: list[int | None] = [
        token if math.isfinite(height) else None
        for token, height in zip(likeliest.tolist(), highest[:, 0].tolist(), strict=True)
    ]
    drawn = [row for row, draw in enumerate(draws) if draw.dice and tokens[row] is not None]
    if drawn:
        own = logits[drawn] - highest[drawn]  # [n, V]; so that no temperature overflows
        for row, token in zip(drawn, _draw(own, [draws[row] for row in drawn]), strict=True):
            tokens[row] = token
    return tokens


def _draw(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Return a token for each row of logits [n, V], whose highest is 0."""

    def gather(figures: Sequence[float]) -> Tensor:
        return torch.tensor(figures, dtype=torch.float64, device=logits.device)

    logits = logits / gather([draw.temperature for draw in draws]).float().clamp(min=COLDEST)[:, None]
    heights = gather([draw.dice.random() for draw in draws if draw.dice])  # [n]
    limits = gather([draw.top_p for draw in draws])  # [n]
    tokens = torch.zeros(len(draws), dtype=torch.long, device=logits.device)
    limited = (limits < 1).nonzero()[:, 0]
    whole = (limits >= 1).nonzero()[:, 0]
    if len(whole):
        tokens[whole] = _find(logits[whole].softmax(-1), heights[whole])
    if len(limited):
        tokens[limited] = _find_in_nucleus(logits[limited], heights[limited], limits[limited])
    drawn: list[int] = tokens.tolist()
    return drawn


def _find(shares: Tensor, heights: Tensor) -> Tensor:
    """Return the index [n] of each row's share [n, V] into which its height [n], of [0, 1) of their sum, falls."""
    sums = shares.cumsum(-1, dtype=torch.float64)  # [n, V]
    return torch.searchsorted(sums, heights[:, None] * sums[:, -1:], right=True)[:, 0].clamp(max=sums.shape[1] - 1)


def _find_in_nucleus(logits: Tensor, heights: Tensor, limits: Tensor) -> Tensor:
    """Return the same among the likeliest tokens whose shares sum up to each row's limit [n] (Holtzman et al. 2020).

    The token with which the sum passes the limit is the last of them.
    """
    whole = logits.logsumexp(-1, keepdim=True)  # [n, 1]
    ordered, tokens = logits.topk(min(LIKELIEST, logits.shape[1]))  # [n, 256], [n, 256]
    shares = (ordered - whole).double().exp()
    found = _find_in_order(shares, tokens, heights, limits)  # [n]
    short = (shares.sum(-1) < limits).nonzero()[:, 0]  # rows whose nucleus has more tokens
    if len(short):
        ordered, tokens = logits[short].sort(-1, descending=True)
        shares = (ordered - whole[short]).double().exp()
        found[short] = _find_in_order(shares, tokens, heights[short], limits[short])
    return found


def _find_in_order(ordered: Tensor, tokens: Tensor, heights: Tensor, limits: Tensor) -> Tensor:
    before = ordered.cumsum(-1) - ordered
    nucleus = ordered.masked_fill((before >= limits[:, None]) & (before > 0), 0)
    return tokens.gather(1, _find(nucleus, heights)[:, None])[:, 0]
