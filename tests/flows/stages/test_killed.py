"""A training process, killed at random instants and run again: it ends at the bits of one that nobody
disturbed.
"""

import json
import os
import random
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

import pytest

from flows.stages.context import Context, select_tasks
from flows.stages.ingest import ingest
from flows.stages.plan import plan
from flows.stages.train import train
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.settings import load_settings
from tests import processes
from tests.tiny import tiny_project

KILLS = 3


@contextmanager
def told_in(output: TextIO) -> Iterator[None]:
    """Write an error to the log too: what a process that dies says is not among what a failed test shows."""
    try:
        yield
    except BaseException:
        traceback.print_exc(file=output)
        raise


def run_training(environment: dict[str, str], log: Path) -> None:
    """Train the tasks of the environment; the log holds the reported lines, then the prompts and their curves, or why
    it failed.
    """
    os.environ.clear()
    os.environ.update(environment)
    with log.open("w") as output, told_in(output):
        stages = Context.open(load_settings())
        stages.report = lambda line: print(line, file=output, flush=True)
        plans = [plan(stages, task, ingest(stages, task)) for task in select_tasks(stages.settings).tasks]
        trained = {name: tuned for name, tuned in train(stages, plans).items() if isinstance(tuned, TunedPrompt)}
        told = {name: [tuned.digest, [repr(point) for point in tuned.curve]] for name, tuned in trained.items()}
        print(json.dumps(told), file=output)


class Training:
    """The training of the two tasks of a project, with everything it stores below `folder`."""

    def __init__(self, tasks: Path, folder: Path, seconds: float = 0.05) -> None:
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
            | {"PTP_CHECKPOINT_SECONDS": str(seconds), "PTP_DTYPE": "float32"}
        )

    def start(self) -> BaseProcess:
        return processes.copy(run_training, self._environment, self._log)

    @property
    def output(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

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
        process.join(120)
        assert process.exitcode == 0, self.output
        found: dict[str, tuple[str, list[str]]] = json.loads(self.output.splitlines()[-1])
        return found

    def killed(self, dice: random.Random) -> bool:
        """Start it, and kill it at a random instant behind its next checkpoint; False if it was done before that."""
        before, process = self.checkpoints(), self.start()
        while process.is_alive() and self.checkpoints() == before:
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.15))
        process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL

    def told_to_end(self) -> float:
        """Start it, send SIGTERM twice in the middle of its steps, and return the seconds that it took to end."""
        process = self.start()
        while process.is_alive() and "step 10/" not in self.output:
            time.sleep(0.005)
        process.terminate()
        process.terminate()  # as who is impatient does
        told = time.monotonic()
        process.join(60)
        assert process.exitcode == 128 + signal.SIGTERM, self.output
        return time.monotonic() - told


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


def test_a_training_that_is_told_to_end_writes_a_checkpoint(tasks: Path, tmp_path: Path) -> None:
    undisturbed = Training(tasks, tmp_path / "undisturbed").finished()
    training = Training(tasks, tmp_path / "told", seconds=3600)
    assert training.told_to_end() < 10
    assert len(training.checkpoints()) == 1
    assert "told to end (SIGTERM)" in training.output
    assert training.finished() == undisturbed
    assert "resumes from a checkpoint" in training.output
