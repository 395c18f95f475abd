"""The checker of histories accepts what one register can have done, and finds every planted violation."""

import math
import random
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chaos.history import Operation, find_violations

Times = tuple[float, float]


def promotion(seq: int, began: float, ended: float = math.inf) -> Operation:
    return Operation("promotion", seq, began, ended)


def read(seq: int, began: float, ended: float) -> Operation:
    return Operation("read", seq, began, ended)


def is_linearisable(*operations: Operation) -> bool:
    return not list(find_violations(operations))


VALID = {
    "nothing": [],
    "one after the other": [read(0, 0, 1), promotion(1, 2, 3), read(1, 4, 5), promotion(2, 6, 7), read(2, 8, 9)],
    "a read beside a promotion finds it": [promotion(1, 0, 9), read(1, 1, 2)],
    "a read beside a promotion does not find it": [promotion(1, 0, 9), read(0, 1, 2)],
    "nobody was told, and nobody sees it": [promotion(1, 0, 1), promotion(2, 2), read(1, 50, 60)],
    "nobody was told, and a reader sees it": [promotion(1, 0, 1), promotion(2, 2), read(2, 50, 60)],
    "two readers beside a promotion": [promotion(1, 0, 9), read(0, 1, 4), read(1, 2, 3)],
    "one that was never seen": [promotion(1, 0), promotion(2, 5, 6), read(0, 1, 2), read(2, 7, 8)],
}
PLANTED = {
    "before it was promoted": [read(1, 0, 1), promotion(1, 2, 3)],
    "older than acknowledged": [promotion(1, 0, 1), promotion(2, 2, 3), read(1, 4, 5)],
    "nothing, although acknowledged": [promotion(1, 0, 1), read(0, 2, 3)],
    "back again": [promotion(1, 0, 1), promotion(2, 2), read(2, 3, 4), read(1, 5, 6)],
    "never promoted": [promotion(1, 0, 1), read(7, 2, 3)],
    "a later one without the one before": [promotion(1, 0, 1), promotion(3, 2, 3), read(3, 4, 5)],
    "two readers, the second behind the first": [promotion(1, 0, 9), read(1, 1, 2), read(0, 3, 4)],
}


@pytest.mark.parametrize("case", VALID)
def test_what_can_have_happened_is_accepted(case: str) -> None:
    assert is_linearisable(*VALID[case])


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_violation_is_found(case: str) -> None:
    assert not is_linearisable(*PLANTED[case])


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 40))
def test_a_history_of_one_register_is_accepted_and_a_stale_read_is_not(seed: int, steps: int) -> None:
    dice, operations, seq = random.Random(seed), [promotion(1, -2, -1)], 1
    for instant in range(0, 10 * steps, 10):  # each takes effect at its instant, within its times
        began, ended = instant - dice.uniform(0, 25), instant + dice.uniform(0, 25)
        if dice.random() < 0.4:
            seq += 1
            operations.append(promotion(seq, began, ended if dice.random() < 0.7 else math.inf))
        else:
            operations.append(read(seq, began, ended))
    dice.shuffle(operations)
    assert is_linearisable(*operations)
    end = 10 * steps + 100.0
    told = [*operations, promotion(seq + 1, end, end + 1)]
    assert not is_linearisable(*told, read(dice.randint(0, seq), end + 2, end + 3))


intervals = st.tuples(st.integers(0, 8), st.integers(1, 4)).map(lambda pair: (float(pair[0]), float(sum(pair))))


@given(promotions=st.lists(intervals, max_size=3), reads=st.lists(st.tuples(intervals, st.integers(0, 3)), max_size=3))
def test_it_agrees_with_trying_every_order(promotions: list[Times], reads: list[tuple[Times, int]]) -> None:
    operations = [promotion(number, *times) for number, times in enumerate(promotions, start=1)]
    operations += [read(seq, *times) for times, seq in reads]
    assert is_linearisable(*operations) == any(map(is_an_order, permutations(operations)))


def is_an_order(order: tuple[Operation, ...]) -> bool:
    """Whether the operations may have happened in that order: none behind one that began after it had ended."""
    named = 0
    for place, operation in enumerate(order):
        if any(later.ended < operation.began for later in order[place:]):
            return False
        if operation.kind == "promotion" and operation.seq != named + 1:
            return False
        if operation.kind == "read" and operation.seq != named:
            return False
        named = operation.seq
    return True
