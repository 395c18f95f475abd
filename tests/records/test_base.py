"""What a stored record may hold: bounds of each kind of field, names, and fields that came later."""

from typing import Any, ClassVar

import pytest
import rfc8785
from pydantic import ValidationError

from ptpipeline.records.base import (
    MAX_INTEGER,
    Count,
    Grown,
    Instant,
    Key,
    Number,
    Record,
    Time,
    Words,
    digest_of,
    is_name,
)


class Bounded(Record):
    count: Count = 0
    number: Number = 1
    key: Key = ""
    time: Time = ""
    instant: Instant = "2026-01-02T03:04:05+00:00"
    words: Words = ""


@pytest.mark.parametrize(
    ("field", "last", "beyond"),
    [
        ("count", 0, -1),
        ("count", MAX_INTEGER, MAX_INTEGER + 1),
        ("number", 1, 0),
        ("number", 999_999_999, 1_000_000_000),
        ("key", "k" * 64, "k" * 65),
        ("time", "t" * 32, "t" * 33),
        ("instant", "2026-01-02T03:04:05.678901+00:00", "2026-01-02T03:04:05.678901+00:00 "),
        ("instant", "9999-12-31T23:59:59+00:00", "9999-12-31T23:59:59-00:01"),  # no clock tells it in UTC
        ("instant", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05"),
        ("instant", "2026-01-02T03:04:05+09:00", "now"),
        ("words", "a\nb", "a\0b"),
    ],
)
def test_a_field_takes_its_bound_and_nothing_beyond(field: str, last: Any, beyond: Any) -> None:
    assert getattr(Bounded(**{field: last}), field) == last
    with pytest.raises(ValidationError, match=field):
        Bounded(**{field: beyond})


def test_the_largest_count_is_the_largest_that_canonical_json_can_hold() -> None:
    assert len(digest_of(Bounded(count=MAX_INTEGER).to_json())) == 64
    with pytest.raises(rfc8785.IntegerDomainError):
        digest_of(MAX_INTEGER + 1)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="later"):
        Bounded(later=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("text", ["a", "0", "a-b", "a" * 63])
def test_a_name_is_of_small_letters_digits_and_dashes(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize("text", ["", "-a", "A", "a_b", "a/b", "a\n", " a", "a" * 64, "\u00e9"])
def test_what_no_key_can_hold_is_no_name(text: str) -> None:
    assert not is_name(text)


class Older(Grown):
    """Its later fields have defaults that a false value is not."""

    LATER: ClassVar = frozenset({"override", "percent", "name"})

    first: int | None = None
    override: bool = True
    percent: float | None = 0.5
    name: str = "test"


def test_a_later_field_is_left_out_at_its_default_alone() -> None:
    assert Older().to_json() == {"first": None}
    changed = {"override": False, "percent": None, "name": ""}
    assert Older(**changed).to_json() == {"first": None} | changed  # type: ignore[arg-type]
    assert Older.model_validate(Older(**changed).to_json()) == Older(**changed)  # type: ignore[arg-type]
