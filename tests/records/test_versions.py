"""Which promotion may stand behind which, and what a second version beside an alias may be."""

from typing import Any

import pytest
from pydantic import ValidationError

from ptpipeline.records.versions import Beside, Pointer, Promotion


def row(seq: int, **changes: Any) -> Promotion:
    fields = {"task": "mood", "alias": "production", "seq": seq, "version": 1, "digest": "a" * 64, "previous": None}
    fields |= {"actor": "me", "reason": "why", "verdict": None, "at": "2026-01-01T00:00:00+00:00"}
    return Promotion.model_validate(fields | changes)


def test_a_chain_names_each_row_before_and_once_begun_never_ends() -> None:
    first = row(1)
    second = row(2, chain=first.row_digest())
    assert second.follows(first)
    assert not second.follows(None)
    assert not second.follows(row(1, actor="eve"))
    assert not row(3).follows(second)


def test_rows_of_an_older_ptpipeline_have_no_chain() -> None:
    assert row(1).follows(None)
    assert row(2).follows(row(1))


@pytest.mark.parametrize("percent", [-1, 100])
def test_a_canary_answers_a_part_of_the_requests(percent: int) -> None:
    with pytest.raises(ValidationError, match="percent"):
        Beside(version=2, digest="a" * 64, percent=percent)
    assert Beside(version=2, digest="a" * 64, percent=0).is_shadow
    assert not Beside(version=2, digest="a" * 64, percent=99).is_shadow


def test_a_pointer_without_a_nonce_that_makes_it_unlike_others_is_none() -> None:
    with pytest.raises(ValidationError, match="nonce"):
        Pointer(promotion=row(1), nonce="n" * 15)
    assert Pointer(promotion=row(1), nonce="n" * 16).promotion == row(1)
