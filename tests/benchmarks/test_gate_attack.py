"""The attack in a short form: it prints, and judges nothing but what is shown."""

import json
import sys

import numpy as np
import pytest

from benchmarks.gate_attack import PLANS, Shown, main, show, start


def test_its_last_line_holds_the_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gate_attack", "--trials", "1", "--rows", "300"])
    main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"open_30", "open_100", "quiet_30", "quiet_100", "trials"} <= set(found)


def test_a_quiet_refusal_is_no_signal() -> None:
    dice = np.random.default_rng(0)
    game = start(400, dice)
    refused = [game.judge(game.hard & (dice.random(400) < 0.2), look, PLANS[""]) for look in range(1, 12)]
    signals = [show(verdict) for verdict in refused if not verdict.passed]
    assert len({signal.open for signal in signals}) > 3
    assert {signal.passes for signal in signals} == {1.0, -1.0}
    assert {signal.quiet for signal in signals} == {Shown(0, 0, 0).quiet}
