"""A ledger whose disk is full, really, and a training killed between two prompts: nothing that was trained is lost."""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import stamina

from flows.cli import main
from flows.stages.context import Context, select_tasks
from flows.stages.ingest import ingest
from flows.stages.plan import plan
from flows.stages.train import train
from ptpipeline.settings import load_settings
from registry import failpoints
from tests import processes
from tests.tiny import tiny_project

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000  # of <linux/sched.h>
_RECURSIVE, _PRIVATE = 0x4000, 0x40000  # of <linux/mount.h>


def mount_a_megabyte(folder: Path) -> bool:
    """Give this process, which has one thread, a disk of one megabyte at `folder`; whether the machine lets it."""
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_MOUNTS):
        return False
    for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(line)
    apart = libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None) == 0
    return apart and libc.mount(b"none", bytes(folder), b"tmpfs", 0, b"size=1m") == 0


class Story:
    """What happens, act by act, in one process that has a small disk of its own for the ledger."""

    def __init__(self, disk: Path, store: Path) -> None:
        self._disk, self._store = disk, store
        stamina.set_testing(True, attempts=2)

    def fill(self) -> None:
        for number, size in enumerate((1 << 16, 1 << 12, 1)):
            with (self._disk / f"ballast-{number}").open("wb", buffering=0) as file, suppress(OSError):
                while file.write(b"x" * size):
                    pass

    def empty(self) -> None:
        for ballast in self._disk.glob("ballast-*"):
            ballast.unlink()

    def fill_at(self, wanted: str) -> None:
        """Fill the disk when the process gets to that step for the first time."""
        steps = iter([wanted])

        def watch(step: str) -> None:
            if step == wanted and next(steps, None):
                self.fill()

        failpoints.watch(watch)

    def fill_at_the_first_checkpoint(self) -> None:
        def wait() -> None:
            while not list(self._store.glob("checkpoints/*")):
                time.sleep(0.002)
            self.fill()

        threading.Thread(target=wait, daemon=True).start()

    def run(self, *arguments: str) -> int:
        try:
            main(arguments)
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    def train_all(self, apart: str = "") -> dict[str, Any]:
        """Train all tasks, if it is named with store and ledger apart; what came of it."""
        settings, lines = load_settings(), list[str]()
        if apart:
            elsewhere = self._store.parent / apart
            settings = settings.model_copy(
                update={"store": f"file://{elsewhere}", "ledger": f"sqlite:///{elsewhere}.db"}
            )
        context = Context.open(settings)
        context.report = lines.append
        plans = [plan(context, task, ingest(context, task)) for task in select_tasks(context.settings).tasks]
        trained: object
        try:
            trained = {name: getattr(tuned, "digest", str(tuned)) for name, tuned in train(context, plans).items()}
        except Exception as error:  # noqa: BLE001  whatever it is, the test compares it
            trained = type(error).__name__
        return {
            "trained": trained,
            "resumed": any("resumes" in line for line in lines),
            "stepped": any("loss" in line for line in lines),
            "checkpoints": len(list(self._store.glob("checkpoints/*"))),
        }


Act = Callable[[Story], Any]


class Machine:
    """The project's two tasks, with the ledger on a disk of one megabyte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tasks = tiny_project(folder, ("one", "two"))
        for name in ("one", "two"):
            path = tasks / f"{name}.yaml"
            path.write_text(path.read_text().replace("steps: 10", "steps: 20, patience: 50"))
        (folder / "disk").mkdir()

    def play(self, *acts: Act) -> list[Any]:
        """Run the acts in a process of their own; return what came of each."""
        told = processes.ask(self._perform, acts)
        if told is None:
            pytest.skip("this machine lets no process mount a file system of its own")
        answers, stderr = told
        self.errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        return answers

    def _perform(self, acts: Sequence[Act]) -> tuple[list[Any], str] | None:
        disk, store, stderr = self.folder / "disk", self.folder / "store", StringIO()
        for name in [name for name in os.environ if name.startswith("PTP_")]:
            del os.environ[name]
        os.environ |= {
            "PTP_HOME": str(self.folder / "home"),
            "PTP_TASKS": str(self.folder / "tasks"),
            "PTP_STORE": store.as_uri(),
            "PTP_LEDGER": f"sqlite:///{disk / 'ledger.db'}",
            "PTP_CHECKPOINT_SECONDS": "0.02",
            "PTP_DTYPE": "float32",
        }
        if not mount_a_megabyte(disk):
            return None
        story = Story(disk, store)
        with redirect_stderr(stderr):
            return [act(story) for act in acts], stderr.getvalue()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_full_disk_below_the_ledger_is_told_as_a_server_that_does_not_answer(machine: Machine) -> None:
    _, code, _, again = machine.play(
        Story.fill_at_the_first_checkpoint,
        lambda story: story.run("run", "one"),
        Story.empty,
        lambda story: story.run("run", "one"),
    )
    assert (code, again) == (3, 0)
    assert machine.errors[0].startswith("error: ledger sqlite:///")
    assert "does not answer" in machine.errors[0]


def test_a_ledger_that_has_no_room_to_be_made_does_not_answer(machine: Machine) -> None:
    codes = machine.play(
        Story.fill,
        lambda story: story.run("run", "one"),
        lambda story: story.run("ingest", "one"),
        lambda story: story.run("reconcile"),
    )
    assert codes[1:] == [3, 3, 3]
    assert all("ledger sqlite:///" in error for error in machine.errors)


@pytest.mark.parametrize("step", ["gang member staged", "publish staged"])
def test_what_cannot_be_stored_or_remembered_comes_back_from_the_checkpoint(machine: Machine, step: str) -> None:
    """The disk fills up when the first of two prompts is stored, or before the ledger remembers either."""
    trained, full, _, again = machine.play(
        lambda story: story.train_all("undisturbed"),
        lambda story: story.fill_at(step) or story.train_all(),
        Story.empty,
        Story.train_all,
    )
    assert full == {"trained": "ServiceUnavailable", "resumed": False, "stepped": True, "checkpoints": 1}
    assert again == {"trained": trained["trained"], "resumed": True, "stepped": False, "checkpoints": 0}
