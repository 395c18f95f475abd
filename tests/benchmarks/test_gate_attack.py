"""The attack in a short form: it prints, and judges nothing but what is shown."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.gate_attack import PLANS, Shown, show, start


def test_its_last_line_holds_the_figures() -> None:
    command = [sys.executable, "-m", "benchmarks.gate_attack", "--trials", "1", "--rows", "300"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"open_30", "open_100", "quiet_30", "quiet_100", "trials"} <= set(found)
    print(done.stdout)


def test_a_quiet_refusal_is_no_signal() -> None:
    dice = np.random.default_rng(0)
    game = start(400, dice)
    refused = [game.judge(game.hard & (dice.random(400) < 0.2), look, PLANS[""]) for look in range(1, 12)]
    signals = [show(verdict) for verdict in refused if not verdict.passed]
    assert len({signal.open for signal in signals}) > 3
    assert {signal.passes for signal in signals} == {1.0, -1.0}
    assert {signal.quiet for signal in signals} == {Shown(0, 0, 0).quiet}
