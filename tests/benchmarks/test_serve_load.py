"""The load's figures see an answer by the wrong version, and how long a new one takes to answer."""

import math

import pytest

from benchmarks.fixtures.load import Answered
from benchmarks.serve_load import WINDOW, Kill, Move, compute_figures, count_wrong, list_swaps

MOVES = [Move("mood", "a", 0.0, 0.1), Move("mood", "b", 10.0, 10.1), Move("mood", "a", 20.0, 20.1)]
KILL = Kill(24.0, 24.1, 26.0)


def one(digest: str, taken: float, ended: float | None = None, fault: str = "", probability: float = 0.5) -> Answered:
    return Answered("classify", taken, taken, taken + 0.1 if ended is None else ended, digest, 0, probability, fault)


@pytest.mark.parametrize(
    ("answers", "wrong"),
    [
        ([one("a", 1.0), one("b", 11.0), one("a", 21.0)], 0),
        ([one("b", 9.0)], 1),  # before it was promoted
        ([one("b", 9.0, 10.05)], 0),  # it was promoted while the request ran
        ([one("a", 12.0)], 0),  # the server has a moment to follow
        ([one("a", 10.1 + WINDOW + 0.1)], 1),  # and no more
        ([one("b", 11.0), one("a", 12.0)], 1),  # what was seen already is not taken back
        ([one("b", 11.0, 11.9), one("a", 11.5)], 0),  # both ran at once
        ([one("a", 20.05), one("b", 21.0)], 1),
        ([one("c", 1.0)], 1),
    ],
)
def test_an_answer_by_a_version_that_must_not_answer_is_counted(answers: list[Answered], wrong: int) -> None:
    assert count_wrong(answers, MOVES) == wrong


def test_a_swap_ends_with_the_first_answer_to_a_request_that_began_after_it() -> None:
    answers = [one("b", 10.0, 10.2), one("a", 11.0, 11.1), one("b", 12.0, 12.6), one("b", 13.0)]
    assert list_swaps(answers, MOVES) == [pytest.approx(2.5), math.inf]


def figures(*answers: Answered) -> dict[str, float]:
    both = [one("a", 1.0), one("b", 11.0, 11.5), one("a", 21.0, 21.4), one("a", 25.0, 26.5), *answers]
    writer = Move("writer", "w", 0.0, 0.1)
    return compute_figures(both, [*MOVES, writer], KILL, {("a", 0): 0.5, ("b", 0): 0.5})


def test_what_a_killed_server_had_taken_is_cut_and_all_else_failed() -> None:
    found = figures(one("", 23.9, 24.05, "cut"), one("", 5.0, 5.1, "cut"), one("", 6.0, 6.1, "AssertionError: 503"))
    assert (found["cut"], found["failed"], found["requests"], found["wrong_version"]) == (1, 2, 7, 0)
    assert (found["restart_s"], found["swaps"], found["swap_max_s"]) == (2.5, 2, 1.4)


def test_probabilities_of_another_version_are_a_wrong_version() -> None:
    assert figures(one("a", 2.0, probability=0.9))["wrong_version"] == 1
