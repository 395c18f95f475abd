"""The quickstart on the real base and the real data, twice: what the README claims of it. Run by `make soak`."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ptpipeline.serving.predictor import load
from ptpipeline.settings import load_settings
from registry.registry import open_registry
from registry.repair.doctor import examine

pytestmark = [pytest.mark.soak, pytest.mark.servers]

CHECKOUT = Path(__file__).parents[2]


class Memory(threading.Thread):
    """The largest sum of resident memory of all processes of one PTP_HOME, in bytes, looked at every three seconds."""

    def __init__(self, home: Path) -> None:
        super().__init__(daemon=True)
        self.home, self.peak, self.ended = str(home), 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(3):
            self.peak = max(self.peak, sum(self._resident(process) for process in psutil.process_iter()))

    def _resident(self, process: psutil.Process) -> int:
        try:
            return process.memory_info().rss if process.environ().get("PTP_HOME") == self.home else 0
        except psutil.Error:
            return 0


def quickstart(home: Path) -> tuple[str, float]:
    """Its output, and the seconds that it took after the downloads."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PTP_", "AWS_", "OMP_"))
    } | {"PTP_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.quickstart"],
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0
    found = re.search(r"done in \d+ s, (\d+) s of them after the downloads", done.stdout)
    assert found
    return done.stdout, float(found[1])


def test_the_quickstart_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ".ptp"
    memory = Memory(home)
    memory.start()
    try:
        first, seconds = quickstart(home)
        second, again = quickstart(home)
        memory.ended.set()
        print(
            f"seconds first {seconds:.0f}, second {again:.0f}; peak memory {memory.peak / 1e9:.2f} GB; "
            f"{time.strftime('%Y-%m-%d')}"
        )
        monkeypatch.setenv("PTP_HOME", str(home))
        monkeypatch.chdir(CHECKOUT)
        registry = open_registry(load_settings())
        assert examine(registry) == []
        measured = {
            task: registry.ledger.report_of(task, registry.ledger.version(task, 1).digest)
            for task in ("movie-sentiment", "tweet-sentiment")
        }
        assert measured["movie-sentiment"].prompt.accuracy >= 0.86
        tweets = measured["tweet-sentiment"]
        assert tweets.interval["macro_f1"][0] > max(tweets.zero_shot.macro_f1, tweets.majority.macro_f1)
        assert "movie-sentiment: promoted; tweet-sentiment: promoted" in first
        assert "movie-sentiment: unchanged; tweet-sentiment: unchanged" in second
        assert load("movie-sentiment").predict(["A gem."])[0].label == "positive"
        assert memory.peak < 5e9
    finally:
        subprocess.run(
            [sys.executable, "-m", "flows.cli", "down"],
            cwd=CHECKOUT,
            env=os.environ | {"PTP_HOME": str(home)},
            check=False,
        )
