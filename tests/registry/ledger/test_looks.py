"""Looks are counted by the rows, not by the split: on both databases, by several at once, and after the ledger was
lost.
"""

import tempfile
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from benchmarks.fixtures.prompts import a_report, a_task, a_verdict, an_artifact
from ptpipeline.gate.spending import Budget, look_at, question_of, reveal_digest
from ptpipeline.records.verdicts import Reveal
from registry.ledger import tables
from registry.ledger.ledger import Ledger
from registry.ledger.looks import OVERLAP, count_looks, is_answered, next_look, restore_look, take_look

BUDGET = Budget(0.05)


def rows(first: int, last: int) -> list[str]:
    return [f"{number:016x}" for number in range(first, last)]


def test_every_question_at_the_same_rows_is_the_next_look(ledger: Ledger) -> None:
    looks = [take_look(ledger, "mood", asked, rows(0, 100), BUDGET) for asked in ("a", "b", "c")]
    assert [(look.test_set, look.number) for look in looks] == [(1, 1), (1, 2), (1, 3)]
    assert count_looks(ledger, "mood", rows(0, 100)) == 3


def test_a_question_that_is_asked_again_is_the_same_look(ledger: Ledger) -> None:
    first = take_look(ledger, "mood", "a", rows(0, 100), BUDGET)
    take_look(ledger, "mood", "b", rows(0, 100), BUDGET)
    assert take_look(ledger, "mood", "a", rows(0, 100), BUDGET) == first
    assert (is_answered(ledger, "mood", "a"), is_answered(ledger, "mood", "c")) == (True, False)


def test_a_split_that_grows_by_a_hundredth_is_never_fresh(ledger: Ledger) -> None:
    """After a hundred nights no row of the first night need be left."""
    looks = [take_look(ledger, "mood", str(night), rows(night, night + 100), BUDGET) for night in range(120)]
    assert [look.number for look in looks] == list(range(1, 121))


def test_other_rows_are_another_set_and_the_first_ones_are_known_again(ledger: Ledger) -> None:
    take_look(ledger, "mood", "a", rows(0, 100), BUDGET)
    assert take_look(ledger, "mood", "b", rows(500, 600), BUDGET).test_set == 2
    assert take_look(ledger, "mood", "c", rows(0, 100), BUDGET).number == 2
    assert count_looks(ledger, "mood", rows(900, 950)) == 0


def test_a_stray_row_makes_no_set_an_old_one(ledger: Ledger) -> None:
    take_look(ledger, "mood", "a", rows(0, 1000), BUDGET)
    shared = int(OVERLAP * 1000)
    assert take_look(ledger, "mood", "b", rows(1000 - shared, 2000 - shared), BUDGET).test_set == 2
    assert take_look(ledger, "mood", "c", rows(999 - 2 * shared, 1999 - 2 * shared), BUDGET).number == 2


def test_a_few_of_many_known_rows_are_no_fresh_set(ledger: Ledger) -> None:
    take_look(ledger, "mood", "a", rows(0, 1000), BUDGET)
    assert take_look(ledger, "mood", "b", rows(0, 5), BUDGET).number == 2
    assert count_looks(ledger, "mood", rows(7, 9)) == 2


def test_many_new_rows_beside_a_few_known_ones_are_a_fresh_set(ledger: Ledger) -> None:
    take_look(ledger, "mood", "a", rows(0, 5), BUDGET)
    assert take_look(ledger, "mood", "b", rows(0, 1000), BUDGET).test_set == 2


def test_the_coming_look_is_the_one_that_is_taken_then_and_asking_takes_none(ledger: Ledger) -> None:
    for asked, first in (("a", 0), ("b", 0), ("c", 500)):
        told = [next_look(ledger, "mood", rows(first, first + 100), BUDGET) for _ in range(2)]
        assert [take_look(ledger, "mood", asked, rows(first, first + 100), BUDGET)] * 2 == told
    assert count_looks(ledger, "mood", rows(0, 100)) == 2


@pytest.mark.parametrize(("first", "more"), [((0, 500, 500), 2), ((0, 500, 0), 1)], ids=["the newer", "the older"])
def test_rows_of_two_sets_count_for_the_one_that_was_looked_at_more(
    ledger: Ledger, first: tuple[int, ...], more: int
) -> None:
    for asked, start in zip("abc", first, strict=True):
        take_look(ledger, "mood", asked, rows(start, start + 100), BUDGET)
    both = [*rows(0, 50), *rows(500, 550)]
    look = take_look(ledger, "mood", "d", both, BUDGET)
    assert (look.test_set, look.number) == (more, 3)


def test_a_question_of_another_task_was_not_asked(ledger: Ledger) -> None:
    take_look(ledger, "mood", "a", rows(0, 10), BUDGET)
    assert not is_answered(ledger, "topic", "a")


def test_the_looks_of_another_set_of_rows_change_no_level(ledger: Ledger) -> None:
    task, plan = a_task(), Budget(0.05, 30)
    take_look(ledger, task.name, "a", rows(0, 10), BUDGET)
    first = take_look(ledger, task.name, "b", rows(500, 510), BUDGET)
    ledger.save_verdict(a_verdict(task, a_report(an_artifact(task), 0.5), None).model_copy(update={"look": first}))
    assert take_look(ledger, task.name, "c", rows(0, 10), plan) == look_at(1, 2, plan)


def test_rows_that_repeat_a_text_count_as_it(ledger: Ledger) -> None:
    take_look(ledger, "mood", "a", rows(0, 10), BUDGET)
    assert take_look(ledger, "mood", "b", [f"{row}-2" for row in rows(0, 10)], BUDGET).number == 2


def test_tasks_do_not_share_looks(ledger: Ledger) -> None:
    take_look(ledger, "mood", "a", rows(0, 10), BUDGET)
    take_look(ledger, "mood", "b", rows(0, 10), BUDGET)
    assert take_look(ledger, "topic", "b", rows(0, 10), BUDGET).number == 1


def test_looks_at_the_same_time_get_numbers_of_their_own(ledger: Ledger) -> None:
    found: list[int] = []

    def look(name: str) -> None:
        found.append(take_look(ledger, "mood", name, rows(0, 50), BUDGET).number)

    threads = [threading.Thread(target=look, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 9))


def test_a_reserve_that_is_added_later_divides_what_the_looks_left(ledger: Ledger) -> None:
    looks = [take_look(ledger, "mood", asked, rows(0, 100), BUDGET) for asked in ("a", "b", "c")]
    plan, taken = Budget(0.05, 30), dict(enumerate(looks, 1))
    taken[4] = take_look(ledger, "mood", "d", rows(0, 100), plan)
    assert taken[4] == look_at(1, 4, plan, dict(enumerate(looks, 1)))
    assert take_look(ledger, "mood", "a", rows(0, 100), plan) == looks[0]
    assert next_look(ledger, "mood", rows(0, 100), plan) == look_at(1, 5, plan, taken)


def test_a_look_that_came_to_no_verdict_has_spent_its_share(ledger: Ledger) -> None:
    """Its figures may have been seen before its process died; another plan gives nothing of it back."""
    everything = Budget(0.05, 1)
    first = take_look(ledger, "mood", "a", rows(0, 100), everything)
    assert first.alpha == 0.05
    second = take_look(ledger, "mood", "b", rows(0, 100), Budget(0.05))
    assert (second.alpha, second.spent) == (0, 0.05)
    assert take_look(ledger, "mood", "a", rows(0, 100), Budget(0.05, 100)) == first


def test_the_store_proves_what_all_looks_before_its_newest_verdict_spent(ledger: Ledger) -> None:
    """The second look came to no verdict, so the store knows it by what the third counted as spent."""
    task = a_task()
    first, second = a_verdict(task, a_report(an_artifact(task), 0.5), None), "no verdict came of it"
    third = first.model_copy(update={"champion": "f" * 64})
    asked = ((question_of(first), Budget(0.05, 5)), (second, Budget(0.04)), (question_of(third), Budget(0.05, 20)))
    looks = [take_look(ledger, task.name, question, rows(0, 100), budget) for question, budget in asked]
    with tempfile.TemporaryDirectory() as folder:
        rebuilt = Ledger(f"sqlite:///{folder}/rebuilt.db")
        with rebuilt.database.writing() as connection:
            for verdict, look in ((first, looks[0]), (third, looks[2])):
                restore_look(connection, verdict.model_copy(update={"look": look}), rows(0, 100))
        for plan in (Budget(0.05), Budget(0.05, 20), Budget(0.06, 7)):
            coming = [next_look(each, task.name, rows(0, 100), plan) for each in (ledger, rebuilt)]
            assert coming[0] == coming[1]
        rebuilt.close()


def test_a_look_of_an_older_ledger_gets_its_share_from_the_store(ledger: Ledger) -> None:
    task = a_task()
    verdict = a_verdict(task, a_report(an_artifact(task), 0.5), None)
    look = look_at(1, 1, Budget(0.05, 1))
    verdict = verdict.model_copy(update={"look": look})
    with ledger.database.writing() as connection:
        row = {"task": task.name, "test_set": 1, "number": 1, "question": question_of(verdict), "at": "2026-01-01"}
        connection.execute(tables.look.insert().values(row))
        restore_look(connection, verdict, rows(0, 100))
    assert take_look(ledger, task.name, question_of(verdict), rows(0, 100), BUDGET) == look


def test_a_verdict_brings_back_its_look_and_the_one_that_revealed_it(ledger: Ledger) -> None:
    task = a_task()
    decided, revealed = (look_at(1, number, BUDGET) for number in (1, 2))
    verdict = a_verdict(task, a_report(an_artifact(task), 0.5), None)
    verdict = verdict.model_copy(update={"look": decided, "reveal": Reveal(by="ann", look=revealed)})
    with ledger.database.writing() as connection:
        restore_look(connection, verdict, rows(0, 100))
    assert count_looks(ledger, task.name, rows(0, 100)) == 2
    assert take_look(ledger, task.name, question_of(verdict), rows(0, 100), BUDGET) == decided
    assert take_look(ledger, task.name, reveal_digest(verdict), rows(0, 100), BUDGET) == revealed
    assert take_look(ledger, task.name, "another", rows(0, 100), BUDGET).number == 3


@pytest.mark.parametrize(
    "statement", ["DELETE FROM look", "UPDATE look SET number = 1", "UPDATE look SET alpha = NULL"]
)
def test_looks_are_never_taken_back(ledger: Ledger, statement: str) -> None:
    take_look(ledger, "mood", "a", rows(0, 10), BUDGET)
    with pytest.raises(DBAPIError, match="append-only"), ledger.database.writing() as connection:
        connection.execute(text(statement))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20), st.integers(0, 5)), max_size=25))
@settings(max_examples=40, deadline=None)
def test_looks_agree_with_a_ten_line_model(asked: list[tuple[int, int, int]]) -> None:
    sets: list[list[Any]] = []
    known: dict[int, tuple[int, int]] = {}
    folder = tempfile.TemporaryDirectory()
    ledger = Ledger(f"sqlite:///{folder.name}/ledger.db")
    for first, length, name in asked:
        wanted = set(rows(first, first + length))
        if name not in known:
            near = [one for one in sets if len(one[0] & wanted) > OVERLAP * len(wanted)]
            mine = max(near, key=lambda one: (one[1], sets.index(one))) if near else None
            if mine is None:
                sets.append(mine := [set(), 0])
            mine[0] |= wanted
            mine[1] += 1
            known[name] = (sets.index(mine) + 1, mine[1])
        look = take_look(ledger, "mood", str(name), wanted, BUDGET)
        assert (look.test_set, look.number) == known[name]
    ledger.close()
    folder.cleanup()
