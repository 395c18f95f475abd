"""Screens a prompt's neighbours for sensitive terms, and lists the default terms. Imports no torch."""

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
    """Return the neighbours that hold one of the terms (by category) as a whole word, in either case.

    These are hints, never proof. Raises TaskFileError if a term is not a single word: a token never holds more.
    """
    categories = _index_terms(terms)
    return [
        Hint(virtual_token=place, token=token, category=category, measures=measures)
        for place, near in enumerate(neighbours.tokens)
        for token, measures in _group_by_token(near.nearest).items()
        for category in sorted({name for word in _split_words(token) for name in categories.get(word, ())})
    ]


def _index_terms(terms: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return categories by case-folded word."""
    categories: dict[str, list[str]] = {}
    for category, words in terms.items():
        for word in words:
            if _split_words(word) != [word.casefold()]:
                raise TaskFileError(
                    f"sensitive terms of {category}: {word!r} is no single word, and a token never holds more; "
                    "list its words one by one"
                )
            categories.setdefault(word.casefold(), []).append(category)
    return categories


def _group_by_token(nearest: Mapping[Measure, Sequence[Neighbour]]) -> dict[str, list[Measure]]:
    """Return each token once, with the measures that name it."""
    measures: dict[str, list[Measure]] = {}
    for measure, listed in nearest.items():
        for neighbour in listed:
            measures.setdefault(neighbour.token, []).append(measure)
    return measures


def _split_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
