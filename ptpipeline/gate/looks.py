"""How much of the error budget each look at the same test rows may spend, so that all looks together stay within it.

Every night's candidate was trained without the test rows, so a test at level alpha_k errs with at most that chance,
whatever was promoted before. By the union bound all looks together err with at most the sum of their levels. alpha_k =
budget * 6 / (pi**2 * k**2) sums to the budget over infinitely many looks (Euler's series; a fixed spending as in Foster
and Stine 2008, alpha-investing).
"""

import math

from ptpipeline.records.base import digest_of
from ptpipeline.records.verdicts import Look

OVERLAP = 0.01  # a set of test rows that shares more of its rows than this with an earlier set is not fresh


def look_at(test_set: int, number: int, budget: float) -> Look:
    """Return the look with that number, counted from 1, at a set of test rows."""
    spent = budget * 6 / math.pi**2 * math.fsum(1 / k**2 for k in range(1, number + 1))
    return Look(test_set=test_set, number=number, alpha=_alpha(number, budget), spent=spent, budget=budget)


def question_digest(challenger: str, champion: str | None, test_digest: str, policy: str) -> str:
    """Return the digest of the question that a look answers; the same question again is the same look.

    All arguments are digests: challenger against champion, on these test rows, under this policy.
    """
    return digest_of({"challenger": challenger, "champion": champion, "test": test_digest, "policy": policy})


def _alpha(number: int, budget: float) -> float:
    return budget * 6 / (math.pi**2 * number**2)
