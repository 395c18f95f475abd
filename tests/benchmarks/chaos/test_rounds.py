"""Chaos in its short form: the named scenarios that chance rarely plays, rounds of chance, and the figures of the last
line.
"""

import random
import sys

import pytest

from benchmarks.chaos.__main__ import run
from benchmarks.chaos.backends import Backends
from benchmarks.chaos.rounds import BLOCK, RANDOM, schedule
from benchmarks.chaos.scenarios import SCENARIOS

# Those that play what no test beside the registry does with several processes; tests/soak/test_chaos.py plays all.
SHORT = ["ledger-restored", RANDOM]


@pytest.mark.servers
@pytest.mark.timeout(900)
def test_nothing_is_lost_or_torn(backends: Backends, capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(backends, seed=1, rounds=0, scenarios=SHORT)
    told = capsys.readouterr().out
    with capsys.disabled():
        print(f"\nchaos: {figures}", file=sys.stderr)
    assert (figures["lost"], figures["torn"]) == (0, 0), told
    assert (figures["rounds"], figures["acknowledged"] > 0, figures["kills"] > 0) == (len(SHORT), True, True)
    assert {"faults", "conflicts", "restarts", "seconds", "seed"} < figures.keys()


def test_every_scenario_is_played_in_fifty_rounds() -> None:
    names = list(schedule(6 * BLOCK, random.Random(3)))
    assert len(names) == 6 * BLOCK
    for start in range(0, len(names), BLOCK):
        block = names[start : start + BLOCK]
        assert {name: block.count(name) for name in SCENARIOS} == dict.fromkeys(SCENARIOS, 1)
        assert block.count(RANDOM) == BLOCK - len(SCENARIOS)


def test_a_seed_is_a_schedule() -> None:
    assert list(schedule(60, random.Random(3))) == list(schedule(60, random.Random(3)))
