"""A benchmark's short form on the tiny base: its last line is printed even if output is captured, and judged by
nobody.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_project

Measure = Callable[[Callable[[Sequence[str]], None], str], dict[str, Any]]


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Measure:
    """Runs a benchmark's `main` with a line of options on the tiny base, and returns its figures."""
    monkeypatch.setenv("PTP_TASKS", str(tiny_project(tmp_path)))
    monkeypatch.setenv("PTP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PTP_STORE", (tmp_path / "store").as_uri())

    def run(main: Callable[[Sequence[str]], None], options: str) -> dict[str, Any]:
        main(["--base", "tiny", *options.split()])
        line = capsys.readouterr().out.splitlines()[-1]
        with capsys.disabled():
            print(f"\n{main.__module__} {options}: {line}", file=sys.stderr)  # the one output of several processes
        figures: dict[str, Any] = json.loads(line)
        return figures

    return run
