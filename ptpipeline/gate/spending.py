"""How much of the error budget each look at the same test rows may spend, so that all looks together stay within it.

A look at level alpha_k errs with at most that chance if its candidate was made without the rows, whatever was promoted
before. By the union bound all looks together err with at most the sum of their levels (a fixed spending as in Foster
and Stine 2008, alpha-investing). Look k has a weight, and spends its weight's share of what is left:

    1 / k**2   without end (no reserve): the weights of all looks sum to pi**2 / 6 (Euler's series)
    1 / k      up to the last of `looks` looks, after which a reserve judges: they sum to the harmonic number H_n

Nothing was spent before: alpha_k = budget * weight_k / sum of all weights. If a reserve is added, or `looks` or the
budget itself changes after some looks were taken, the others divide what is left of today's budget by their own
weights. What a look spent stays spent, whether a verdict came of it or not, because a person may have seen its figures;
no other budget makes it less. So all looks together never spend more than the budget of the newest, unless more was
spent before it; then nothing is left.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from ptpipeline.records.base import digest_of
from ptpipeline.records.verdicts import Look, Verdict

_EULER_GAMMA = 0.5772156649015329
_NOTHING = 1e-9  # of the budget: a rest that is rounding, or as good as nothing
_EXACT = 1000  # harmonic numbers beyond it come from their expansion, which is exact to 1e-14 there


class Budget(NamedTuple):
    """The chance of a wrong promotion over all looks at a set of test rows, and over how many looks it is spent.

    `looks` is None if no reserve takes over, so that the looks never end.
    """

    total: float
    looks: int | None = None


def look_at(test_set: int, number: int, budget: Budget, taken: Mapping[int, Look] | None = None) -> Look:
    """Return the look with that number, counted from 1, at a set of test rows.

    `taken` are looks at this set, by number: they stay as they are. What is not known of one between two of them is
    what the later one counted for it. A look after the last one of the plan spends nothing, and nothing passes by it.
    """
    taken = taken or {}
    if number in taken:
        return taken[number]
    earlier = max((k for k in taken if k < number), default=0)
    later = min((k for k in taken if k > number), default=None)
    spent = taken[earlier].spent if earlier else 0.0
    if later is not None:
        left = taken[later].spent - taken[later].alpha - spent
        held = math.fsum(_weight(k, budget.looks) for k in range(earlier + 1, later))
    elif earlier == 0 or _is_planned(taken[earlier], budget):
        alpha, spent = _alpha(number, budget), _alphas_until(number, budget)
        return Look(test_set=test_set, number=number, alpha=alpha, spent=spent, budget=budget.total)
    else:  # the plan changed on the way
        left = budget.total - spent
        held = _all_weights(budget.looks) - math.fsum(_weight(k, budget.looks) for k in range(1, earlier + 1))
    left = left if left > _NOTHING * budget.total else 0.0
    weights = [_weight(k, budget.looks) for k in range(earlier + 1, number + 1)]
    alphas = [left * weight / held if weight else 0.0 for weight in weights]
    return Look(
        test_set=test_set, number=number, alpha=alphas[-1], spent=spent + math.fsum(alphas), budget=budget.total
    )


def question_digest(challenger: str, champion: str | None, test_digest: str, policy: str) -> str:
    """Return the digest of the question that a look answers; the same question again is the same look.

    All arguments are digests: challenger against champion, on these test rows, under this policy.
    """
    return digest_of({"challenger": challenger, "champion": champion, "test": test_digest, "policy": policy})


def question_of(verdict: Verdict) -> str:
    """Return the digest of the question that the verdict answers."""
    return question_digest(verdict.digest, verdict.champion, verdict.test_digest, verdict.policy)


def reveal_digest(verdict: Verdict) -> str:
    """Return the digest of the question what the figures of a verdict are, which is a look of its own."""
    return digest_of({"reveal": question_of(verdict)})


def _is_planned(look: Look, budget: Budget) -> bool:
    """Whether the look, and all before it, spent what this plan gives them."""
    planned = _alpha(look.number, budget), _alphas_until(look.number, budget)
    return all(
        math.isclose(found, wanted, rel_tol=1e-9)
        for found, wanted in zip((look.alpha, look.spent), planned, strict=True)
    )


def _alpha(number: int, budget: Budget) -> float:
    """The level of a look of a plan that never changed."""
    if budget.looks is None:
        return budget.total * 6 / (math.pi**2 * number**2)
    return budget.total * _weight(number, budget.looks) / _all_weights(budget.looks)


def _alphas_until(number: int, budget: Budget) -> float:
    """The sum of the levels up to that look."""
    weights = math.fsum(_weight(k, budget.looks) for k in range(1, number + 1))
    if budget.looks is None:
        return budget.total * 6 / math.pi**2 * weights
    return budget.total * weights / _all_weights(budget.looks)


def _weight(number: int, looks: int | None) -> float:
    if looks is None:
        return 1 / number**2
    return 1 / number if number <= looks else 0.0


@cache
def _all_weights(looks: int | None) -> float:
    if looks is None:
        return math.pi**2 / 6
    if looks <= _EXACT:
        return math.fsum(1 / k for k in range(1, looks + 1))
    return math.log(looks) + _EULER_GAMMA + 1 / (2 * looks) - 1 / (12 * looks**2)
