"""The memory benchmark on the tiny base: what it prints, and that its sampling sees an allocation."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import main, peak_over
from tests.tiny import tiny_project


def test_last_line_compares_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PTP_TASKS", str(tiny_project(tmp_path)))
    monkeypatch.setenv("PTP_HOME", str(tmp_path / "home"))
    main(["--base", "tiny", "--batch", "2", "--tokens", "7", "--prompt-length", "5"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    print(figures)
    assert {"ours_mib", "peft_mib", "ratio", "dtype", "machine"} <= set(figures)


def test_a_block_of_memory_is_seen() -> None:
    def work() -> None:
        block = np.ones(64 * 2**20, dtype=np.uint8)
        time.sleep(0.05)
        del block

    assert 60 * 2**20 < peak_over(work) < 90 * 2**20
