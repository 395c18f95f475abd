"""A ledger whose disk is full, really, and a training killed between two prompts: nothing that was trained is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_project

# Runs commands in one process that has a tmpfs of its own for the ledger; prints what came of each, as JSON.
STORY = """
import json, sys, threading, time
from pathlib import Path

import stamina

from flows.cli import main
from flows.stages.context import Context, ingest, select_tasks
from flows.stages.train import plan, train
from ptpipeline.settings import load_settings
from registry import failpoints

disk, store, told = Path(sys.argv[1]), Path(sys.argv[2]), []
stamina.set_testing(True, attempts=2)


def fill():
    for number, size in enumerate((1 << 16, 1 << 12, 1)):
        with (disk / f"ballast-{number}").open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                pass


def empty():
    for ballast in disk.glob("ballast-*"):
        ballast.unlink()


def fill_at(wanted):
    steps = iter([wanted])
    def watch(step):
        if step == wanted and next(steps, None):
            fill()
    failpoints.watch(watch)


def fill_at_the_first_checkpoint():
    def wait():
        while not list(store.glob("checkpoints/*")):
            time.sleep(0.002)
        fill()
    threading.Thread(target=wait, daemon=True).start()


def run(*arguments):
    try:
        main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def train_all(apart=""):
    settings, lines = load_settings(), []
    if apart:
        elsewhere = store.parent / apart
        settings = settings.model_copy(update={"store": f"file://{elsewhere}", "ledger": f"sqlite:///{elsewhere}.db"})
    context = Context.open(settings)
    context.report = lines.append
    plans = [plan(context, task, ingest(context, task)) for task in select_tasks(context.settings).tasks]
    try:
        trained = {name: getattr(tuned, "digest", str(tuned)) for name, tuned in train(context, plans).items()}
    except Exception as error:
        trained = type(error).__name__
    return {"trained": trained, "resumed": any("resumes" in line for line in lines),
            "stepped": any("loss" in line for line in lines),
            "checkpoints": len(list(store.glob("checkpoints/*"))) }


for act in sys.argv[3:]:
    told.append(eval(act))
print(json.dumps(told))
"""


class Machine:
    """The project's two tasks, with the ledger on a disk of one megabyte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tasks = tiny_project(folder, ("one", "two"))
        for name in ("one", "two"):
            path = tasks / f"{name}.yaml"
            path.write_text(path.read_text().replace("steps: 10", "steps: 40, patience: 50"))
        (folder / "disk").mkdir()

    def play(self, *acts: str) -> list[Any]:
        """Run the acts in one process; return what came of each."""
        disk, store = self.folder / "disk", self.folder / "store"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PTP_")}
        settings = {
            "PTP_HOME": self.folder / "home",
            "PTP_TASKS": self.folder / "tasks",
            "PTP_STORE": store.as_uri(),
            "PTP_LEDGER": f"sqlite:///{disk / 'ledger.db'}",
            "PTP_CHECKPOINT_SECONDS": "0.02",
            "PTP_DTYPE": "float32",
        }
        mount = f"mount -t tmpfs -o size=1m none {disk}"
        if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
            pytest.skip("this machine lets no process mount a file system of its own")
        command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", STORY]
        ended = subprocess.run(
            [*command, disk, store, *acts],
            env=clean | {name: str(value) for name, value in settings.items()},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        self.errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        answers: list[Any] = json.loads(ended.stdout.splitlines()[-1])
        return answers


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_full_disk_below_the_ledger_is_told_as_a_server_that_does_not_answer(machine: Machine) -> None:
    _, code, _, again = machine.play(
        "fill_at_the_first_checkpoint()", "run('run', 'one')", "empty()", "run('run', 'one')"
    )
    assert (code, again) == (3, 0)
    assert machine.errors[0].startswith("error: ledger sqlite:///")
    assert "does not answer" in machine.errors[0]


def test_a_ledger_that_has_no_room_to_be_made_does_not_answer(machine: Machine) -> None:
    verbs = [f"run({verb})" for verb in ("'run', 'one'", "'ingest', 'one'", "'reconcile'")]
    assert machine.play("fill()", *verbs)[1:] == [3, 3, 3]
    assert all("ledger sqlite:///" in error for error in machine.errors)


@pytest.mark.parametrize("step", ["gang member staged", "publish staged"])
def test_what_cannot_be_stored_or_remembered_comes_back_from_the_checkpoint(machine: Machine, step: str) -> None:
    """The disk fills up when the first of two prompts is stored, or before the ledger remembers either."""
    trained, full, _, again = machine.play(
        "train_all('undisturbed')", f"fill_at({step!r}) or train_all()", "empty()", "train_all()"
    )
    assert full == {"trained": "ServiceUnavailable", "resumed": False, "stepped": True, "checkpoints": 1}
    assert again == {"trained": trained["trained"], "resumed": True, "stepped": False, "checkpoints": 0}
