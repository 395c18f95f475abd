"""The screen of a prompt's neighbours against sensitive terms, and the terms that it takes by default. Imports no
torch.
"""

import re
from collections.abc import Mapping, Sequence

from ptpipeline.errors import TaskFileError
from ptpipeline.prompts.interpretation import Hint, Measure, Neighbour, Neighbours

TERMS: dict[str, Sequence[str]] = {
    "gender": ("man", "men", "woman", "women", "male", "female", "boy", "girl", "transgender", "gay", "lesbian"),
    "religion": (
        "christian",
        "muslim",
        "islam",
        "jewish",
        "jew",
        "hindu",
        "buddhist",
        "atheist",
        "church",
        "mosque",
        "synagogue",
    ),
    "nationality": (
        "american",
        "chinese",
        "indian",
        "russian",
        "mexican",
        "african",
        "arab",
        "asian",
        "european",
        "immigrant",
        "foreigner",
    ),
    "health": (
        "cancer",
        "hiv",
        "aids",
        "depression",
        "diabetes",
        "disabled",
        "disability",
        "pregnant",
        "autism",
        "suicide",
    ),
    "politics": (
        "democrat",
        "republican",
        "liberal",
        "conservative",
        "communist",
        "socialist",
        "fascist",
        "nazi",
        "trump",
        "biden",
    ),
    "profanity": ("damn", "hell", "crap", "bloody", "idiot", "stupid"),
}


def screen(neighbours: Neighbours, terms: Mapping[str, Sequence[str]] = TERMS) -> list[Hint]:
    """The neighbours that hold one of the terms (by category) as a whole word, in either case: hints, never proof.

    Raises TaskFileError where a term is no single word: a token never holds more.
    """
    categories = _by_word(terms)
    return [
        Hint(virtual_token=place, token=token, category=category, measures=measures)
        for place, near in enumerate(neighbours.tokens)
        for token, measures in _tokens(near.nearest).items()
        for category in sorted({found for word in _words(token) for found in categories.get(word, ())})
    ]


def _by_word(terms: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Categories by case-folded word."""
    found: dict[str, list[str]] = {}
    for category, words in terms.items():
        for word in words:
            if _words(word) != [word.casefold()]:
                raise TaskFileError(
                    f"sensitive terms of {category}: {word!r} is no single word, and a token never holds more; "
                    "list its words one by one"
                )
            found.setdefault(word.casefold(), []).append(category)
    return found


def _tokens(nearest: Mapping[Measure, Sequence[Neighbour]]) -> dict[str, list[Measure]]:
    """Each token once, with the measures that name it."""
    found: dict[str, list[Measure]] = {}
    for measure, listed in nearest.items():
        for neighbour in listed:
            found.setdefault(neighbour.token, []).append(measure)
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
