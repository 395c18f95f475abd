"""How people's own words are written in plots: in a font of this machine that has their letters, else as numbers.

A plot is drawn by whatever machine runs the night, and few of them have fonts for every script. A letter that no font
has would be drawn as a box, and a box tells nothing.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from ptpipeline.foreign import escape_controls

OWN = "DejaVu Sans"  # comes with matplotlib
MAX_FONTS = 400  # of a machine are looked into
MAX_LETTERS = 40  # of a name; a longer one would leave no room for the plot
_BOXES = "Last Resort"  # a font whose letters are boxes on purpose


class Lettering(NamedTuple):
    """The names as a plot writes them, the fonts to write them in, and whether any of them became a number."""

    names: list[str]
    fonts: list[str]
    numbered: bool


def write(names: Sequence[str]) -> Lettering:
    """Return how to write these names; one whose letters no font has is written as its place among them, from 1."""
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
    alike = {name for name in shown if shown.count(name) > 1}  # once they are shortened
    lettered = [f"{place}." if missing & set(name) or name in alike else name for place, name in enumerate(shown, 1)]
    return Lettering(lettered, fonts, lettered != shown)


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…"


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
