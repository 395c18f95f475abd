"""How much of the error budget each look at the same test rows may spend, so that all looks together stay within it.

A look at level alpha_k errs with at most that chance if its candidate was made without the rows, whatever was promoted
before. By the union bound all looks together err with at most the sum of their levels (a fixed spending as in Foster
and Stine 2008, alpha-investing). Look k has a weight, and spends its weight's share of what is left:

    1 / k**2   for ever (no reserve): the weights of all looks sum to pi**2 / 6 (Euler's series)
    1 / k      up to the last of `looks` looks, after which a reserve judges: they sum to the harmonic number H_n

Nothing was decided before: alpha_k = budget * weight_k / sum of all weights. If a reserve is added, or `looks` or the
budget itself changes after some looks have spent, the others divide what is left of today's budget by their own
weights. What was spent stays spent, as the chance that it was: no other budget makes it less. So all looks together
never spend more than the budget of the newest, unless more was spent before it; then nothing is left.
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


def look_at(test_set: int, number: int, budget: Budget, decided: Mapping[int, Look] | None = None) -> Look:
    """Return the look with that number, counted from 1, at a set of test rows.

    `decided` are the looks at this set that a verdict was decided by, or that revealed one, by number: they stay as
    they are. The others hold their shares until they are decided. A look after the last one spends nothing, and nothing
    passes by it.
    """
    decided = decided or {}
    if number in decided:
        return decided[number]
    spent_by = {k: look.alpha for k, look in decided.items()}
    if all(math.isclose(alpha, _alpha(k, budget), rel_tol=1e-9) for k, alpha in spent_by.items()):
        alpha, spent = _alpha(number, budget), _alphas_until(number, budget)
    else:  # the plan changed on the way
        left = budget.total - math.fsum(spent_by.values())
        left = left if left > _NOTHING * budget.total else 0.0
        held = _all_weights(budget.looks) - math.fsum(_weight(k, budget.looks) for k in spent_by)
        alphas = [
            spent_by[k] if k in spent_by else left * weight / held if weight else 0.0
            for k, weight in ((k, _weight(k, budget.looks)) for k in range(1, number + 1))
        ]
        alpha, spent = alphas[-1], math.fsum(alphas)
    return Look(test_set=test_set, number=number, alpha=alpha, spent=spent, budget=budget.total)


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
