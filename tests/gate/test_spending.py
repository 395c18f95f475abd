"""What each look may spend: never more than the budget together, whatever changes on the way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fixtures.prompts import a_report, a_task, a_verdict, an_artifact
from ptpipeline.gate.spending import Budget, look_at, question_digest, question_of, reveal_digest
from ptpipeline.records.verdicts import Look

horizons = st.none() | st.integers(1, 60)


def test_all_looks_of_a_long_life_stay_within_the_budget() -> None:
    assert sum(look_at(1, number, Budget(0.05)).alpha for number in range(1, 1_000)) < 0.05
    assert look_at(1, 1_000_000, Budget(0.05)).spent < 0.05  # which is their sum, by the next test


@given(st.integers(1, 400), st.floats(0.001, 0.5), horizons)
def test_what_is_spent_is_the_sum_of_the_looks(number: int, total: float, looks: int | None) -> None:
    budget = Budget(total, looks)
    assert look_at(1, number, budget).spent == pytest.approx(
        sum(look_at(1, k, budget).alpha for k in range(1, number + 1))
    )


@given(st.integers(1, 5000), st.floats(0.001, 0.5))
def test_a_horizon_is_spent_to_the_last_of_its_looks(looks: int, total: float) -> None:
    budget = Budget(total, looks)
    assert look_at(1, looks, budget).spent == pytest.approx(total)
    beyond = look_at(1, looks + 1, budget)
    assert (beyond.alpha, beyond.spent) == (0, pytest.approx(total))


def test_a_horizon_leaves_later_looks_more_than_looks_for_ever() -> None:
    ends, never = Budget(0.05, 30), Budget(0.05)
    assert look_at(1, 1, ends).alpha == pytest.approx(0.05 / 3.99499, rel=1e-5)
    assert look_at(1, 30, ends).alpha == pytest.approx(0.05 / 30 / 3.99499, rel=1e-5)
    assert look_at(1, 30, ends).alpha > 10 * look_at(1, 30, never).alpha


@given(st.lists(st.tuples(horizons, st.booleans(), st.sampled_from((0.01, 0.05, 0.1))), min_size=1, max_size=60))
def test_no_change_of_plan_overspends_the_budget(nights: list[tuple[int | None, bool, float]]) -> None:
    """A reserve is added or taken away, `looks` and `confidence` change, and some looks never come to a verdict."""
    taken: dict[int, Look] = {}
    for number, (looks, comes_to_a_verdict, total) in enumerate(nights, 1):
        look = look_at(1, number, Budget(total, looks), taken)
        before = sum(found.alpha for found in taken.values())
        assert 0 <= look.alpha <= look.spent
        assert look.alpha <= max(0, total - before) + 1e-9
        if comes_to_a_verdict:
            taken[number] = look
            assert look_at(1, number, Budget(total, looks), taken) == look
    assert sum(look.alpha for look in taken.values()) <= 0.1 * (1 + 1e-9)


@given(st.lists(horizons, min_size=1, max_size=40), horizons)
def test_what_is_spent_is_told_as_it_was_spent(plans: list[int | None], last: int | None) -> None:
    taken: dict[int, Look] = {}
    for number, looks in enumerate(plans, 1):
        taken[number] = look_at(1, number, Budget(0.05, looks), taken)
    look = look_at(1, len(plans) + 1, Budget(0.05, last), taken)
    assert look.spent == pytest.approx(sum(found.alpha for found in taken.values()) + look.alpha)


@given(st.lists(st.tuples(horizons, st.booleans()), min_size=1, max_size=40), horizons)
def test_the_newest_look_knows_what_the_missing_ones_spent(
    nights: list[tuple[int | None, bool]], last: int | None
) -> None:
    """A ledger that was rebuilt from the store lacks the looks without a verdict."""
    taken: dict[int, Look] = {}
    for number, (looks, _) in enumerate(nights, 1):
        taken[number] = look_at(1, number, Budget(0.05, looks), taken)
    proven = {number: look for number, look in taken.items() if nights[number - 1][1] or number == len(nights)}
    number, plan = len(nights) + 1, Budget(0.05, last)
    assert look_at(1, number, plan, proven) == look_at(1, number, plan, taken)
    missing = sum(look_at(1, k, plan, proven).alpha for k in taken.keys() - proven.keys())
    assert missing <= sum(taken[k].alpha for k in taken.keys() - proven.keys()) + 1e-9


def test_a_smaller_budget_makes_no_look_cheaper() -> None:
    """What was spent of .10 was that much; of .05 nothing is left behind it."""
    taken = {1: look_at(1, 1, Budget(0.1))}
    assert taken[1].alpha == pytest.approx(0.0608, abs=1e-4)
    second = look_at(1, 2, Budget(0.05), taken)
    assert (second.alpha, second.spent) == (0, taken[1].alpha)


def test_a_larger_budget_leaves_what_was_not_spent() -> None:
    taken = {1: look_at(1, 1, Budget(0.05))}
    rest = [look_at(1, number, Budget(0.1, 10), taken) for number in range(2, 11)]
    assert rest[-1].spent == pytest.approx(0.1)


def test_a_reserve_that_is_added_later_divides_what_is_left() -> None:
    taken = {number: look_at(1, number, Budget(0.05)) for number in range(1, 6)}
    spent = taken[5].spent
    rest = [look_at(1, number, Budget(0.05, 30), taken) for number in range(6, 31)]
    assert {look.budget for look in rest} == {0.05}
    assert rest[0].alpha == pytest.approx((0.05 - spent) / 6 / sum(1 / k for k in range(6, 31)))
    assert rest[-1].spent == pytest.approx(0.05)


@pytest.mark.parametrize("other", [None, 100])
def test_what_rounding_leaves_of_a_spent_budget_is_nothing(other: int | None) -> None:
    for looks in range(1, 61):
        spent = {number: look_at(1, number, Budget(0.05, looks)) for number in range(1, looks + 1)}
        assert look_at(1, looks + 1, Budget(0.05, other), spent).alpha == 0


def test_a_look_that_is_not_known_holds_its_share() -> None:
    plan = Budget(0.05, 10)
    first = look_at(1, 1, plan)
    assert look_at(1, 3, plan, {1: first}) == look_at(1, 3, plan, {1: first, 2: look_at(1, 2, plan)})


def test_a_look_between_two_known_ones_is_what_the_later_one_counted_for_it() -> None:
    plan = Budget(0.05, 10)
    first, second, third = (look_at(1, number, plan) for number in (1, 2, 3))
    for taken in ({3: third}, {1: first, 3: third}, {1: first, 3: third, 4: look_at(1, 4, plan)}):
        between = look_at(1, 2, plan, taken)
        assert (between.alpha, between.spent) == (pytest.approx(second.alpha), pytest.approx(second.spent))


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


def test_a_verdict_answers_the_question_of_its_digests_and_a_reveal_asks_another() -> None:
    task = a_task()
    verdict = a_verdict(task, a_report(an_artifact(task), 0.9), "c" * 64)
    asked = question_digest(verdict.digest, "c" * 64, verdict.test_digest, task.policy_digest())
    assert question_of(verdict) == asked != reveal_digest(verdict)
    others = [verdict.model_copy(update={name: "b" * 64}) for name in ("digest", "champion", "test_digest", "policy")]
    assert len({reveal_digest(one) for one in (verdict, *others)}) == 5
