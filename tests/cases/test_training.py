"""Files that were told, or went wrong, only after training had begun."""

import os
import signal
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from flows.cli import main
from ptpipeline.errors import ContextError, PtpError, TaskFileError
from tests.cases.run import Run
from tests.processes import copy

TOLD: dict[str, tuple[type[PtpError], str]] = {
    "bigvirtual": (
        ContextError,
        r"255 virtual tokens and a label of 1 leave no room .* context of 256; take a shorter",
    ),
    "blank": (TaskFileError, r"labels\.positive: '  ' begins with all tokens of ' ' \(labels\.negative\)"),
    "longrow": (ContextError, r"task longrow: too long: longrow\.csv: line 242; a text may have \d+ tokens"),
    "longtrain": (ContextError, r"task longtrain: too long: longtrain\.csv: line 242; a text may have \d+ tokens"),
    "prefix": (TaskFileError, r"labels\.negative: ' not good' begins with all tokens of ' not' \(labels\.positive\)"),
}
# the rows that each is judged by
TRAINED = {
    "emptyafter": 240,
    "gen": 240,
    "japanese": 240,
    "json": 240,
    "nl": 240,
    "specialtext": 240,
    "speciallabel": 240,
}


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run("91-train", tmp_path, monkeypatch)


@pytest.mark.parametrize("name", TOLD)
def test_what_cannot_train_is_told_before_any_training(name: str, case: Run) -> None:
    kind, words = TOLD[name]
    with pytest.raises(kind, match=words) as raised:
        case.run(name)
    assert (case.trained, "\n" in str(raised.value)) == (False, False)


@pytest.mark.parametrize("name", TRAINED)
def test_every_row_of_an_odd_file_trains_or_is_judged(name: str, case: Run) -> None:
    outcome = case.run(name)
    assert (outcome.verdict, outcome.rows, case.trained) == ("passed", TRAINED[name], True)


def test_a_row_without_text_is_left_out_by_its_line(case: Run, caplog: pytest.LogCaptureFixture) -> None:
    case.run("emptyafter")
    assert "emptyafter.csv: check empty_text found 1: line 242" in caplog.text


def test_ctrl_c_ends_a_long_training_in_one_line(case: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("home", "tasks", "store", "ledger", "dtype"):
        monkeypatch.setenv(f"PTP_{name.upper()}", str(getattr(case.settings, name)))
    said = case.folder / "said.txt"

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script starts in the background
        with said.open("w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
            main(["run", "ctrlc"])

    process = copy(run)
    until = time.monotonic() + 60
    while not (said.exists() and "step 4/" in said.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(30)
    code = process.exitcode
    process.kill()  # else it would train on
    lines = said.read_text().splitlines()
    assert (code, "Traceback" in said.read_text()) == (130, False), lines[-5:]
