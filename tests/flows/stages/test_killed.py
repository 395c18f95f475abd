"""A real training process, killed at random instants and run again: it ends at the bits of one that nobody
disturbed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import tiny_project

TRAINING = """
import json
from flows.stages.context import Context, ingest, select_tasks
from flows.stages.train import plan, train
from ptpipeline.settings import load_settings

stages = Context.open(load_settings())
stages.report = lambda line: print(line, flush=True)
plans = [plan(stages, task, ingest(stages, task)) for task in select_tasks(stages.settings).tasks]
trained = train(stages, plans)
print(json.dumps({name: [tuned.digest, [repr(point) for point in tuned.curve]] for name, tuned in trained.items()}))
"""
KILLS = 3


class Training:
    """The training of the two tasks of a project, with everything it stores below `folder`."""

    def __init__(self, tasks: Path, folder: Path) -> None:
        self.store = folder / "store"
        self._log = folder / "log"
        folder.mkdir()
        settings = {
            "PTP_HOME": folder,
            "PTP_TASKS": tasks,
            "PTP_STORE": self.store.as_uri(),
            "PTP_LEDGER": f"sqlite:///{folder / 'ledger.db'}",
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PTP_")}
        self._environment = (
            clean
            | {name: str(value) for name, value in settings.items()}
            | {"PTP_CHECKPOINT_SECONDS": "0.05", "PTP_DTYPE": "float32"}
        )

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", TRAINING], env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def checkpoints(self) -> dict[str, float]:
        """When each was last written."""
        found = {}
        for path in self.store.glob("checkpoints/*.safetensors"):
            try:
                found[path.name] = path.stat().st_mtime
            except FileNotFoundError:  # replaced or cleared at this moment
                continue
        return found

    def finished(self) -> dict[str, tuple[str, list[str]]]:
        """Digest and learning curve of each task, of a training that runs to its end now."""
        process = self.start()
        assert process.wait(120) == 0, self.output
        found: dict[str, tuple[str, list[str]]] = json.loads(self.output.splitlines()[-1])
        return found

    def killed(self, dice: random.Random) -> bool:
        """Start it, and kill it at a random instant behind its next checkpoint; False if it was done before that."""
        before, process = self.checkpoints(), self.start()
        while process.poll() is None and self.checkpoints() == before:
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Two tasks of one base, which train long enough to be killed some times on the way."""
    folder = tiny_project(tmp_path, ("one", "two"))
    (folder / "one.yaml").write_text((folder / "one.yaml").read_text().replace("steps: 10", "steps: 60, patience: 50"))
    recipe = (
        "method: p_tuning, encoder_width: 16, optimizer: adafactor, schedule: constant, num_virtual_tokens: 4, "
        "steps: 60, patience: 50"
    )
    (folder / "two.yaml").write_text(
        (folder / "two.yaml").read_text().replace("num_virtual_tokens: 4", recipe).replace("steps: 10, ", "")
    )
    return folder


def test_a_killed_training_ends_at_the_same_bits(tasks: Path, tmp_path: Path) -> None:
    undisturbed, training, dice = (
        Training(tasks, tmp_path / "undisturbed").finished(),
        Training(tasks, tmp_path / "killed"),
        random.Random(0),
    )
    assert sum(training.killed(dice) for _ in range(KILLS)) >= 2
    assert training.checkpoints()
    assert training.finished() == undisturbed
    assert "resumes from a checkpoint" in training.output
    assert training.checkpoints() == {}
