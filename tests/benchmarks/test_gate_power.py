"""The gate's benchmark in a short form: it prints, and judges nothing."""

import json
import sys

import pytest

from benchmarks.gate_power import main


def test_its_last_line_holds_the_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    short = "--trials 20 --tasks 2 --nights 4 --rows 300"
    monkeypatch.setattr(sys, "argv", ["gate_power", *short.split()])
    main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    wanted = {
        "wrong_promotions",
        "power",
        "wrong_promotions_year",
        "naive_wrong_promotions",
        "naive_wrong_promotions_year",
        "trials",
    }
    assert wanted <= set(found)
