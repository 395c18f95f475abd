"""How a person would write a value that a file holds as a number: `1` for 1.0, because a column of integers in which
some are missing becomes one of floats in pandas.
"""

import math

MAX_EXACT = 2**53  # up to it, a float holds every integer
MAX_DIGITS = 400


def write_number(digits: str) -> str:
    """Return a number, given as the digits of a float, in the shortest form."""
    if len(digits) > MAX_DIGITS:
        return digits
    number = float(digits)
    if not math.isfinite(number):
        return digits
    return str(int(number)) if number.is_integer() and abs(number) <= MAX_EXACT else repr(number)
