"""The labels of a task file: their names, and the words that the model answers with."""

from collections.abc import Collection
from itertools import chain, count, permutations
from typing import Annotated, Any

from pydantic import Field, GetPydanticSchema
from pydantic_core import CoreSchema, core_schema

MAX_LABELS = 100
_ENDS = ".;!"  # of drafted words, if they need one; then any other sign


def _spell_out(labels: list[str] | dict[str, str | None]) -> dict[str, str]:
    """Return the words of each label; a label without words is answered by its own name, behind a space."""
    if isinstance(labels, list):
        twice = next((label for number, label in enumerate(labels) if label in labels[:number]), None)
        if twice is not None:
            raise ValueError(f"the label {twice!r} is listed twice: list each once")
        labels = dict.fromkeys(labels)
    if any(not label.strip() for label in labels):
        raise ValueError("a label needs a name: what the column of labels holds")
    words = {label: own_words(label) if words is None else words for label, words in labels.items()}
    if any(not one for one in words.values()):
        raise ValueError(
            "each label needs the words that the model is to answer with, such as ' positive'; leave them out for the "
            "label's own name behind a space"
        )
    owners: dict[str, str] = {}
    for label, one in words.items():
        other = owners.setdefault(one, label)
        if other != label:
            raise ValueError(
                f"two labels have the same words: {other!r} and {label!r} both {one!r}, so the model could not tell "
                "them apart: give each its own"
            )
    return words


def _read_either(_source: Any, handler: Any) -> CoreSchema:
    schema = handler(list[str] | dict[str, str | None])
    return core_schema.no_info_after_validator_function(_spell_out, schema)


# A list of names, or names with words or null; read, it is the words by name.
Labels = Annotated[dict[str, str], GetPydanticSchema(_read_either), Field(max_length=MAX_LABELS)]


def find_beginnings(labels: dict[str, str]) -> list[tuple[str, str]]:
    """Return the pairs of labels of which the first one's words are the beginning of the second one's."""
    return [
        (one, two)
        for (one, short), (two, long) in permutations(labels.items(), 2)
        if long.startswith(short) and long != short
    ]


def draft_words(labels: Collection[str], words: dict[str, str] | None = None) -> dict[str, str]:
    """Return words for each label, of which none are the beginning of another's: those that are given; if some of them
    are, its name behind a space; and if one name begins another, a sign behind each that stands in none.
    """
    own = {label: own_words(label) for label in labels}
    for drafted in (own if words is None else words, own):
        if not find_beginnings(drafted):
            return drafted
    signs = chain(_ENDS, map(chr, count(ord("!"))))
    end = next(sign for sign in signs if not any(sign in label for label in labels))
    return {label: f"{one}{end}" for label, one in own.items()}


def own_words(label: str) -> str:
    """Return the words of a label that has no others: its own name behind a space."""
    return f" {label.strip()}"
