"""How much chance of error each look at the same test rows may spend, so that all looks together, however many, stay
within the budget.

Every night's candidate was trained without the test rows, so a test at level alpha_k errs with at most that chance,
whatever was promoted before; by the union bound all looks err with at most their sum. alpha_k = budget * 6 / (pi**2 *
k**2) sums to the budget over infinitely many looks (Euler's series; as the fixed spending of Foster and Stine 2008,
alpha-investing).
"""

import math

from ptpipeline.records import Look, digest_of

OVERLAP = 0.01  # rows shared with an earlier set of test rows above which the set is no fresh one


def look_at(test_set: int, number: int, budget: float) -> Look:
    """The look of that number, from 1, at a set of test rows."""
    spent = budget * 6 / math.pi**2 * math.fsum(1 / k**2 for k in range(1, number + 1))
    return Look(test_set=test_set, number=number, alpha=_alpha(number, budget), spent=spent, budget=budget)


def question(rivals: tuple[str, str | None], test_digest: str, policy: str) -> str:
    """What a look answers: of challenger and champion, on test rows, under a policy, by digest. Asked again it is the
    same look.
    """
    return digest_of({"challenger": rivals[0], "champion": rivals[1], "test": test_digest, "policy": policy})


def _alpha(number: int, budget: float) -> float:
    return budget * 6 / (math.pi**2 * number**2)
