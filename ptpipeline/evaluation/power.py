"""How many test rows a decision needs, by statsmodels' power of the one-sided t test on the rows' differences.

A row's difference is -1, 0 or 1, so its variance is `discordant - effect**2` (Connor 1987, sample size for McNemar's
test), with `discordant` the share of rows that differ and `effect` their mean difference.
"""

import math

from scipy.optimize import brentq
from statsmodels.stats.power import TTestPower

POWER = 0.8
DISCORDANT = 0.1  # assumed share of rows on which two prompts of one task differ, until one is measured
MAX_MARGIN = 0.05
LARGEST = 0.999  # the largest difference that is searched for


def expected_discordance(measured: float | None) -> float:
    """Return the share of rows on which two prompts will differ: the measured one, at least .01, else DISCORDANT."""
    return DISCORDANT if measured is None else max(measured, 0.01)


def rows_needed(effect: float, alpha: float, discordant: float, power: float = POWER) -> int:
    """Return how many test rows show a mean difference of `effect` with this power, at one-sided `alpha`."""
    size = _effect_size(effect, discordant)
    return math.ceil(float(TTestPower().solve_power(effect_size=size, alpha=alpha, power=power, alternative="larger")))


def smallest_gain(rows: int, alpha: float, discordant: float, power: float = POWER) -> float | None:
    """Return the mean difference that `rows` test rows show with this power: the inverse of `rows_needed`.

    None if no difference up to LARGEST has the power.
    """

    def surplus(effect: float) -> float:
        size = _effect_size(effect, discordant)
        return float(TTestPower().power(size, rows, alpha, alternative="larger")) - power

    low, high = 1e-6, 1e-4
    while surplus(high) < 0 and high < LARGEST:  # in steps, because scipy's noncentral t is NaN far above the answer
        low, high = high, min(high * 1.5, LARGEST)
    return float(brentq(surplus, low, high, xtol=1e-6)) if rows > 1 and surplus(high) >= 0 else None


def default_margin(rows: int, budget: float) -> float:
    """Return the margin of non-inferiority: the smallest loss that `rows` test rows show at error `budget`.

    At most MAX_MARGIN; with power .8, if a share of DISCORDANT rows differs.
    """
    effect = smallest_gain(rows, budget, DISCORDANT)
    return MAX_MARGIN if effect is None else min(round(effect, 4), MAX_MARGIN)


def _effect_size(effect: float, discordant: float) -> float:
    """Mean over standard deviation of the rows' differences; at least a share of `effect` of the rows has to differ."""
    return effect / math.sqrt(max(discordant, effect) - effect**2)
