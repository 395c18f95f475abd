"""The screen of neighbours against sensitive terms."""

import pytest

from ptpipeline.errors import TaskFileError
from ptpipeline.prompts.interpretation import WARNING, NearTokens, Neighbour, Neighbours
from ptpipeline.prompts.sensitive import TERMS, screen


def near(*tokens: str) -> NearTokens:
    """A virtual token with these neighbours by cosine, and the first of them by the dot product as well."""
    listed = [Neighbour(id=place, token=token, value=1.0) for place, token in enumerate(tokens)]
    return NearTokens(nearest={"cosine": listed, "dot": listed[:1], "euclidean": []}, overlap={})


def of(*tokens: NearTokens) -> Neighbours:
    return Neighbours(k=2, tokens=list(tokens), overlap={})


def test_a_term_is_found_in_either_case_with_its_place_and_measures() -> None:
    (hint,) = screen(of(near("▁film"), near("▁WOMEN", "▁plot")))
    assert (hint.virtual_token, hint.token, hint.category, hint.measures) == (1, "▁WOMEN", "gender", ["cosine", "dot"])


def test_a_term_inside_another_word_is_no_hit() -> None:
    assert not screen(of(near("▁omen", "▁mankind", "hellish")))


def test_a_hint_carries_the_warning() -> None:
    assert screen(of(near("▁cancer")))[0].warning == WARNING


def test_own_terms_take_the_place_of_the_built_in() -> None:
    found = screen(of(near("▁Straße", "▁women")), {"places": ["STRASSE"], "streets": ["straße"]})
    assert [(hint.token, hint.category) for hint in found] == [("▁Straße", "places"), ("▁Straße", "streets")]


@pytest.mark.parametrize("term", ["united states", "", "well-known"])
def test_a_term_that_no_token_can_hold_is_refused(term: str) -> None:
    with pytest.raises(TaskFileError, match="no single word"):
        screen(of(near("▁film")), {"places": [term]})


def test_the_built_in_terms_are_single_words() -> None:
    assert screen(of(near("▁film")), TERMS) == []
