"""The schedule of chaos; tests/soak/test_chaos.py plays all scenarios and rounds of chance."""

import random

from benchmarks.chaos.rounds import BLOCK, RANDOM, schedule
from benchmarks.chaos.scenarios import SCENARIOS


def test_every_scenario_is_played_in_fifty_rounds() -> None:
    names = list(schedule(6 * BLOCK, random.Random(3)))
    assert len(names) == 6 * BLOCK
    for start in range(0, len(names), BLOCK):
        block = names[start : start + BLOCK]
        assert {name: block.count(name) for name in SCENARIOS} == dict.fromkeys(SCENARIOS, 1)
        assert block.count(RANDOM) == BLOCK - len(SCENARIOS)


def test_a_seed_is_a_schedule() -> None:
    assert list(schedule(60, random.Random(3))) == list(schedule(60, random.Random(3)))
