"""Rows that wait: tasks take turns, batches are of similar length, and nobody is passed over."""

from hypothesis import given
from hypothesis import strategies as st

from ptpipeline.serving.engine import Rendered
from ptpipeline.serving.queues import TURN, FairQueue, Row

PASS = 512


def row(task: str, length: int = 20, prompts: int = 1) -> Row:
    """A row that nobody waits for."""
    return Row(Rendered(task, [0] * length), task, prompts, lambda outcome: None)


def filled(*rows: Row) -> FairQueue:
    """A queue of these rows."""
    queue = FairQueue()
    for one in rows:
        queue.add(one)
    return queue


def near(one: Row) -> bool:
    """All prompts are in memory."""
    return True


def test_a_hot_task_lets_a_thousand_cold_ones_pass() -> None:
    cold = [row(f"cold-{number}") for number in range(1000)]
    queue = filled(*(row("hot") for _ in range(5000)), *cold)
    taken = list[Row]()
    while len({one.task for one in taken}) <= 1000:
        taken += queue.take(PASS, near)
    hot = sum(one.task == "hot" for one in taken)
    assert hot <= TURN // 20 + PASS // 20  # its turn, and what is left of the batch that ends the round


def test_a_turn_leaves_room_in_a_batch_for_others() -> None:
    queue = filled(*(row("hot") for _ in range(100)), *(row(f"cold-{number}") for number in range(50)))
    batch = queue.take(PASS, near)
    assert sum(one.task == "hot" for one in batch) == TURN // 20
    assert len(batch) == PASS // 20


def test_a_batch_is_full_if_one_task_alone_has_rows() -> None:
    queue = filled(*(row("hot") for _ in range(100)))
    assert len(queue.take(PASS, near)) == PASS // 20


def test_rows_of_a_task_keep_their_order() -> None:
    rows = [row("a") for _ in range(5)]
    assert filled(*rows).take(PASS, near) == rows


def test_rows_of_one_batch_are_of_similar_length() -> None:
    queue = filled(
        *(row(f"{kind}-{number}", length) for number in range(40) for kind, length in (("a", 10), ("b", 40)))
    )
    batches = [queue.take(PASS, near) for _ in range(3)]
    assert [{one.length for one in batch} for batch in batches[:2]] == [{10}, {40}]


def test_a_short_batch_takes_rows_of_any_length() -> None:
    rows = [row("a", 5), row("b", 60), row("c", 17)]
    assert set(filled(*rows).take(PASS, near)) == set(rows)


def test_a_row_that_fits_no_batch_runs_alone_and_soon() -> None:
    queue = filled(*(row("hot", 20) for _ in range(200)), row("long", 4000))
    batches = [queue.take(PASS, near) for _ in range(3)]
    assert [one.task for one in batches[1]] == ["long"]


def test_prompts_in_memory_come_first_within_a_round() -> None:
    queue = filled(*(row(f"t{number}", 100) for number in range(10)))
    first = queue.take(PASS, lambda one: one.task in ("t7", "t8", "t9"))
    assert [one.task for one in first] == ["t7", "t8", "t9", "t0", "t1"]


def test_the_members_of_an_ensemble_count_as_rows() -> None:
    queue = filled(*(row(f"t{number}", 20, prompts=5) for number in range(20)))
    assert len(queue.take(PASS, near)) == 5


def test_a_row_that_was_removed_is_not_taken() -> None:
    gone, stays = row("a"), row("b")
    queue = filled(gone, stays)
    queue.remove(gone)
    queue.remove(gone)
    assert queue.take(PASS, near) == [stays]
    assert len(queue) == 0


def test_a_turn_of_an_ensemble_counts_all_its_members() -> None:
    queue = filled(*(row("whole", 10, prompts=6) for _ in range(8)), *(row(f"t{number}", 10) for number in range(40)))
    batch = queue.take(PASS, near)
    assert sum(one.task == "whole" for one in batch) == TURN // 60


def test_a_task_whose_rows_left_has_no_turn_any_more() -> None:
    gone = row("gone", 400)
    queue = filled(row("first", 400), gone, row("last", 400))
    queue.take(PASS, near)  # the other two keep their turns
    queue.remove(gone)
    assert [one.task for one in queue.foresee(9)] == ["last"]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 900), st.integers(1, 3)), max_size=60))
def test_every_row_is_taken_once_and_batches_keep_their_bound(given_rows: list[tuple[str, int, int]]) -> None:
    rows = [row(*one) for one in given_rows]
    queue, taken = filled(*rows), list[Row]()
    while len(queue):
        batch = queue.take(PASS, lambda one: one.length % 2 == 0)
        assert batch
        padded = max(one.length for one in batch) * sum(one.prompts for one in batch)
        assert len(batch) == 1 or padded <= PASS
        taken += batch
    assert len(taken) == len(rows)
    assert set(taken) == set(rows)
