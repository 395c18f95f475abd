"""The gang's benchmark on the tiny base: what it prints, and that both sides compute the same."""

import json
from pathlib import Path

import pytest

from benchmarks.gang import main
from tests.tiny import tiny_project


def test_last_line_has_k_and_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PTP_TASKS", str(tiny_project(tmp_path)))
    monkeypatch.setenv("PTP_HOME", str(tmp_path / "home"))
    main(["--base", "tiny", "--members", "3", "--batch", "2", "--tokens", "7", "--prompt-length", "5", "--rounds", "2"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    print(figures)
    assert figures["k"] == 3
    assert figures["ratio"] == pytest.approx(figures["solo_s"] / figures["gang_s"])
    assert figures["grad_rel_err"] <= 1e-5
