"""How people's own words are written in plots: in a font of this machine that has their letters, else as numbers.

A plot is drawn by whatever machine runs the night, and few of them have fonts for every script. A letter that no font
has would be drawn as a box, and a box tells nothing.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from ptpipeline.data.near import drop_invisible
from ptpipeline.foreign import escape_controls

OWN = "DejaVu Sans"  # comes with matplotlib
MAX_FONTS = 400  # of a machine are looked into
MAX_LETTERS, MAX_WIDTH = 40, 25.0  # of a name, the width in em; a longer one would leave no room for the plot
_BOXES = "Last Resort"  # a font whose letters are boxes on purpose
_SIZE = 10  # at which widths are taken, in points


class Lettering(NamedTuple):
    """The names as a plot writes them, the fonts to write them in, and whether any of them became a number."""

    names: list[str]
    fonts: list[str]
    numbered: bool

    @property
    def width(self) -> float:
        """The width of the widest name in em."""
        return max(map(measure_width, self.names), default=0.0)


def write(names: Sequence[str]) -> Lettering:
    """Return how to write these names; one whose letters no font has, or that looks like another one or like nothing,
    is written as its place among them, from 1.
    """
    shown = [_shorten(escape_controls(name)) for name in names]
    needed = {letter for name in shown for letter in name}
    fonts, missing = [OWN], needed - _letters(OWN)
    for family in _other_families() if missing else ():
        found = missing & _letters(family)
        if found:
            fonts.append(family)
            missing -= found
        if not missing:
            break
    looks = Counter(["", *map(_look, shown)])  # a name that looks like nothing is one of two
    unclear = [bool(missing & set(name)) or looks[_look(name)] > 1 for name in shown]
    numbers = [f"{place}." for place in range(1, len(shown) + 1)]
    if {numbers[place] for place, is_unclear in enumerate(unclear) if is_unclear} & set(shown):
        return Lettering(numbers, fonts, True)  # a name that reads like another one's number
    pairs = zip(unclear, numbers, shown, strict=True)
    return Lettering([number if is_unclear else name for is_unclear, number, name in pairs], fonts, any(unclear))


def measure_width(name: str) -> float:
    """Return about how wide a name is drawn, in em."""
    return sum(map(_measure_letter, name))


def _look(name: str) -> str:
    """How a name looks: a letter may be written by several characters, and some characters are not seen."""
    return drop_invisible(unicodedata.normalize("NFC", name))


def _shorten(name: str) -> str:
    if len(name) <= MAX_LETTERS and measure_width(name) <= MAX_WIDTH:
        return name
    kept = name[: MAX_LETTERS - 1]
    while measure_width(kept) > MAX_WIDTH - 1:
        kept = kept[:-1]
    return f"{kept}…"


@cache
def _measure_letter(letter: str) -> float:
    """The width of a letter in our own font; one of another font may be as wide as it is high."""
    if letter not in _letters(OWN):
        return 0.0 if unicodedata.combining(letter) else 1.0
    font = FT2Font(font_manager.findfont(OWN))
    font.set_size(_SIZE, 72)
    return float(font.load_char(ord(letter)).linearHoriAdvance) / 2**16 / _SIZE


@cache
def _letters(family: str) -> frozenset[str]:
    """Return the letters of a font, and what is drawn without one (marks that shape a neighbour, spaces)."""
    path = font_manager.findfont(family, fallback_to_default=False)
    found = frozenset(map(chr, FT2Font(path).get_charmap()))
    return found | {letter for letter in ("\u200c", "\u200d", "\ufe0e", "\ufe0f") if found}


@cache
def _other_families() -> tuple[str, ...]:
    """Return the other fonts of this machine, those whose name promises many letters first."""
    names = {font.name for font in font_manager.fontManager.ttflist} - {OWN}
    usable = [name for name in names if _BOXES not in name and not name.startswith(("cm", "STIX", "DejaVu"))]
    promising = [name for name in sorted(usable) if any(word in name for word in ("CJK", "Noto", "Unicode", "Unifont"))]
    return tuple(dict.fromkeys([*promising, *sorted(usable)]))[:MAX_FONTS]
