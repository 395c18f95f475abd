"""What each look may spend: never more than the budget together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptpipeline.gate.looks import look_at, question_digest


def test_all_looks_of_a_long_life_stay_within_the_budget() -> None:
    assert sum(look_at(1, number, 0.05).alpha for number in range(1, 1_000)) < 0.05
    assert look_at(1, 1_000_000, 0.05).spent < 0.05  # which is their sum, by the next test


@given(st.integers(1, 400), st.floats(0.001, 0.5))
def test_what_is_spent_is_the_sum_of_the_looks(number: int, budget: float) -> None:
    assert look_at(1, number, budget).spent == pytest.approx(
        sum(look_at(1, k, budget).alpha for k in range(1, number + 1))
    )


def test_a_question_is_of_challenger_champion_rows_and_policy() -> None:
    assert (
        len(
            {
                question_digest("a", "b", "t", "p"),
                question_digest("a", None, "t", "p"),
                question_digest("b", "a", "t", "p"),
                question_digest("a", "b", "u", "p"),
                question_digest("a", "b", "t", "q"),
            }
        )
        == 5
    )
