"""`torchrun -m flows.parallel TASK`: two real processes run a task to its promotion, and end together."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.flows.project import Project

STEPS = 120


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project", ("tiny-sentiment",))


def start(project: Project, task: str = "tiny-sentiment") -> "subprocess.Popen[str]":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {
        "PTP_HOME": project.settings.home,
        "PTP_TASKS": project.tasks,
        "PTP_STORE": project.settings.store,
        "PTP_LEDGER": project.settings.ledger,
        "PTP_DTYPE": "float32",
        "PTP_CHECKPOINT_SECONDS": "0.05",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    return subprocess.Popen(
        [*launcher, "-m", "flows.parallel", task],
        env=os.environ | {name: str(value) for name, value in settings.items()},
        stdout=subprocess.PIPE,
        stderr=(project.folder / "stderr").open("w"),
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """What it printed on standard output."""
    printed, _ = process.communicate(timeout=200)
    return printed


def read_errors(project: Project) -> list[str]:
    """Our own sentences; torchrun prints a table of its own."""
    lines = (project.folder / "stderr").read_text().splitlines()
    return [line for line in lines if line.startswith("error: ")]


@pytest.mark.soak  # tests/tuning/test_ranks.py kills a process of a training too
def test_a_killed_process_ends_the_run_with_one_sentence_and_the_next_run_resumes(project: Project) -> None:
    project.edit("steps: 10", f"steps: {STEPS}, patience: 900")
    process = start(project)
    while not list((project.folder / "store").glob("checkpoints/*.safetensors")):
        assert process.poll() is None, (project.folder / "stderr").read_text()
        time.sleep(0.02)
    (follower,) = (child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1")
    follower.send_signal(signal.SIGKILL)
    at = time.monotonic()
    finish(process)
    assert time.monotonic() - at < 20
    assert process.returncode != 0
    (sentence,) = read_errors(project)
    assert "run the same command again: it goes on from the last checkpoint" in sentence
    printed = finish(process := start(project))
    said = (project.folder / "stderr").read_text()
    assert process.returncode == 0, said
    assert "resumes from a checkpoint: tiny-sentiment at step" in said
    assert "2 processes trained together" in said
    assert "tiny-sentiment" in printed
    assert not list((project.folder / "store").glob("checkpoints/*.safetensors"))
    assert [row.version for row in project.stages.registry.ledger.history("tiny-sentiment", "production")] == [1]


@pytest.mark.soak  # below, the same sentence in one process
def test_what_ends_the_first_process_before_training_is_said_once(project: Project) -> None:
    finish(process := start(project, "missing"))
    assert process.returncode == 1
    (sentence,) = read_errors(project)
    assert sentence.startswith("error: no task 'missing' in ")


# ---------------------------------------------------------------- one process, here


@pytest.mark.parametrize(
    ("ledger", "code", "told"),
    [("sqlite:///{folder}/ledger.db", 1, "no task 'missing'"), ("postgresql://me@127.0.0.1:9/ledger", 3, "answer")],
)
def test_a_server_that_is_away_is_told_from_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ledger: str,
    code: int,
    told: str,
) -> None:
    from flows.parallel import main

    (tmp_path / "tasks").mkdir()
    places = {"HOME": tmp_path / "home", "TASKS": tmp_path / "tasks", "STORE": f"file://{tmp_path}/store"}
    for name, value in (places | {"LEDGER": ledger.format(folder=tmp_path)}).items():
        monkeypatch.setenv(f"PTP_{name}", str(value))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["missing"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ended.value.code, told in capsys.readouterr().err) == (code, True)
