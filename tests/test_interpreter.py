"""What people set for every Python program: it is told by its name, without its value."""

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flows.cli as cli
from ptpipeline.errors import SettingsError
from ptpipeline.foreign import parsing
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


def test_what_is_read_by_such_a_library_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch makes the folder of its cache as it is imported, which it is when transformers reads a configuration."""
    monkeypatch.setenv("ODD_CACHE", str(tmp_path / "gone" / "cache"))
    (tmp_path / "odd_library.py").write_text("import os\nos.mkdir(os.environ['ODD_CACHE'])\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError) as raised, parsing("config.json", "it is damaged"):
        importlib.import_module("odd_library")
    assert str(raised.value) == (
        "ODD_CACHE: odd_library refuses its value (No such file or directory) and cannot be imported; correct or unset "
        "it"
    )


def test_a_library_for_which_no_memory_is_left_damages_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_library.py").write_text("raise ImportError('x.so: failed to map segment from shared object')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        pytest.raises(
            SettingsError, match="odd_library cannot be imported: the system gives this process no more memory"
        ),
        parsing("its weights", "it is damaged"),
    ):
        importlib.import_module("odd_library")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_memory_that_is_used_up_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # `main` sets it
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "error: the system gives this process no more memory: end other work, or raise its limit (`ulimit -v`, `-u`)\n"
    )


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
