"""How many test rows a decision needs, by statsmodels' power of the t test on the rows' differences."""

import math

from scipy.optimize import brentq
from statsmodels.stats.power import TTestPower

POWER = 0.8
DISCORDANT = 0.1  # share of rows on which two prompts of one task commonly differ; where nothing was measured yet
MAX_MARGIN = 0.05
LARGEST = 0.999  # difference that is looked for


def expected_discordance(measured: float | None) -> float:
    """The share of rows on which two prompts will differ: as measured, at least one in a hundred; else as is common."""
    return DISCORDANT if measured is None else max(measured, 0.01)


def rows_needed(effect: float, alpha: float, discordant: float, power: float = POWER) -> int:
    """Test rows that show a mean difference of `effect` with that power, at one-sided `alpha`, where so large a share
    of rows differ.

    Rows that differ do so by 1, so a row's variance is `discordant - effect**2`; at least `effect` of them have to
    differ.
    """
    spread = math.sqrt(max(discordant, effect) - effect**2)
    return math.ceil(
        float(TTestPower().solve_power(effect_size=effect / spread, alpha=alpha, power=power, alternative="larger"))
    )


def smallest_gain(rows: int, alpha: float, discordant: float, power: float = POWER) -> float | None:
    """The mean difference that so many rows show with that power, the inverse of `rows_needed`; None where none
    would.
    """

    def surplus(effect: float) -> float:
        spread = math.sqrt(max(discordant, effect) - effect**2)
        return float(TTestPower().power(effect / spread, rows, alpha, alternative="larger")) - power

    low, high = 1e-6, 1e-4
    while surplus(high) < 0 and high < LARGEST:  # step by step: far above the answer scipy's noncentral t is no number
        low, high = high, min(high * 1.5, LARGEST)
    return float(brentq(surplus, low, high, xtol=1e-6)) if rows > 1 and surplus(high) >= 0 else None


def default_margin(rows: int, budget: float) -> float:
    """How much worse counts as not inferior: what so many rows can tell from equal, 80 % of the time, at a first look;
    at most .05.
    """
    effect = smallest_gain(rows, budget, DISCORDANT)
    return MAX_MARGIN if effect is None else min(round(effect, 4), MAX_MARGIN)
