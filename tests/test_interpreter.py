"""What people set for every Python program: it is told by its name, without its value."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from ptpipeline.interpreter import explain_import

ODD = "import os\ndef read(): {}\nread()\n"


def fail_importing(folder: Path, patch: pytest.MonkeyPatch, line: str) -> Exception:
    """The error of a library of one line, which is imported in a function."""
    (folder / "odd_library.py").write_text(ODD.format(line))
    patch.syspath_prepend(folder)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        importlib.import_module("odd_library")
    return raised.value


@pytest.mark.parametrize(
    "line",
    ["raise ValueError('bad settings, see ODD_LOGS for all')", "int(os.environ['ODD_LOGS'])"],
    ids=["it names the variable", "it quotes the value"],
)
def test_a_variable_that_a_library_cannot_be_imported_with_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv("ODD_LOGS", "s3cret")
    told = str(explain_import(fail_importing(tmp_path, monkeypatch, line)))
    assert told == "ODD_LOGS: odd_library refuses its value and cannot be imported; correct or unset it"


def test_a_library_that_fails_for_another_reason_is_not_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert explain_import(fail_importing(tmp_path, monkeypatch, "raise ValueError('a defect')")) is None


def test_an_error_of_a_call_is_none_of_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD_LOGS", "s3cret")
    with pytest.raises(ValueError, match="s3cret") as raised:
        int("s3cret")
    assert explain_import(raised.value) is None


def test_ptp_tells_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "ruamel").mkdir()
    (tmp_path / "ruamel" / "__init__.py").write_text("import os\nint(os.environ['ODD_LOGS'])\n")
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "tasks"],
        env={"ODD_LOGS": "s3cret", "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "error: ODD_LOGS: ruamel refuses its value and cannot be imported; correct or unset it"
    ]


def test_ptp_without_docstrings_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "flows.cli", "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: PYTHONOPTIMIZE: from level 2 on (or -OO) Python leaves out docstrings")
