"""Progress on a terminal is a bar that goes away; into a file or a pipe go plain lines alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.cli.pty_reader import watch_terminal

SLOW = """
import logging, sys, time
from flows.cli.display import choose_display
from flows.cli.terminal import log_plainly, say_progress
from ptpipeline.progress import count, phase, watch
log_plainly()
display = choose_display()
display.interval = 0.05
with watch("task", display), phase("test [red]rows\\x1b[2J"):
    for number, group in enumerate(count([[1]] * 4, 4)):
        time.sleep(0.3)
        say_progress(f"line {number}")
        logging.getLogger("ptpipeline").warning("warning %d", number)
print("end", file=sys.stderr)
"""


def run_on_terminal() -> str:
    """All that a terminal of 120 columns gets."""
    environment = os.environ | {"COLUMNS": "120", "LINES": "40", "TERM": "xterm"}
    code, written = watch_terminal(["-c", SLOW], environment)
    assert code == 0
    return written


@pytest.fixture(scope="module")
def shown() -> str:
    return run_on_terminal()


def test_a_terminal_gets_a_bar_that_moves(shown: str) -> None:
    assert "━" in shown
    assert all(f"{done} of 4 rows" in shown for done in (1, 2, 3))
    assert "rows/s" in shown


def test_lines_and_warnings_stay_above_the_bar_whole(shown: str) -> None:
    lines = [line.rpartition("\x1b[2K")[2].strip() for line in shown.replace("\r", "\n").split("\n")]
    assert [line for line in lines if line.startswith("line ")] == [f"line {number}" for number in range(4)]
    assert [line for line in lines if line.startswith("WARNING")] == [
        f"WARNING warning {number}" for number in range(4)
    ]
    assert shown.rstrip().endswith("end")


def test_a_bar_writes_out_what_would_control_a_terminal(shown: str) -> None:
    assert "test [red]rows\\x1b[2J" in shown


def test_what_is_printed_into_a_file_below_a_bar_gets_there(tmp_path: Path) -> None:
    """Where nobody watches standard output, the bar leaves it alone."""
    printing = SLOW.replace('say_progress(f"line {number}")', 'print(f"answer {number}")')
    assert printing != SLOW
    file = tmp_path / "answers"
    redirected = f"import sys; sys.stdout = open({str(file)!r}, 'w')\n{printing}"
    code, written = watch_terminal(["-c", redirected], os.environ | {"COLUMNS": "120", "LINES": "40", "TERM": "xterm"})
    assert (code, "answer" in written) == (0, False)
    assert file.read_text() == "".join(f"answer {number}\n" for number in range(4))


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, check=True)
    assert "━" not in done.stderr
    assert "\x1b" not in done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert sum(line.startswith("task: test [red]rows\\x1b[2J: ") for line in lines) >= 8
    assert [line for line in lines if line.startswith("line")] == [f"line {number}" for number in range(4)]
