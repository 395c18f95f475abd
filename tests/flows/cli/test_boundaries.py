"""Where `ptp` meets files, streams and users: each verb ends in one sentence and an exit code, never in a traceback."""

import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest

from flows.cli.app import app
from tests.flows.cli.test_cli import environment_of, error_of, process, ptp
from tests.tiny import tiny_project

# What each verb needs besides the path that is tried.
ARGUMENTS = {
    "lineage": [],
    "init": ["--yes"],
    "predict": ["tiny-sentiment@1"],
    "evaluate": ["tiny-sentiment@1"],
    "report": ["tiny-sentiment@1"],
    "export": ["tiny-sentiment@1", "--format", "npy"],
    "import": ["--task", "tiny-sentiment"],
    "backup": [],
    "restore": [],
    "metrics": [],
    "serve": [],
    "token": ["friend"],
}
VERBS = [
    ("versions",),
    ("status",),
    ("down",),
    ("tasks",),
    ("doctor",),
    ("reconcile",),
    ("ingest", "tiny-sentiment"),
    ("predict", "tiny-sentiment", "x"),
    ("gate", "explain", "tiny-sentiment"),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a project whose task ran: version 1 is in production."""
    folder = tmp_path_factory.mktemp("ran")
    tiny_project(folder)
    assert ptp(environment_of(folder), "run", "tiny-sentiment").returncode == 0
    return environment_of(folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a project in which nothing ran."""
    folder = tmp_path_factory.mktemp("project")
    tiny_project(folder, rows=40)
    return environment_of(folder)


def find_paths() -> Iterator[tuple[str, list[str], bool]]:
    """Every verb that takes a path, with the option in front of it, and whether typer looks if it can be read."""
    for command in app.registered_commands:
        assert command.callback is not None
        for kind in inspect.get_annotations(command.callback, eval_str=False).values():
            if get_origin(kind) is Annotated and Path in (kind.__origin__, *get_args(kind.__origin__)):
                verb = command.name or command.callback.__name__.replace("_", "-")
                info = kind.__metadata__[0]
                words = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str)]
                yield verb, [word for word in words if word.startswith("--")], info.readable


PATHS = [(verb, option) for verb, option, _ in find_paths()]


def bad_paths(folder: Path) -> dict[str, str]:
    (folder / "file").write_bytes(b"\xff\x00")
    (folder / "folder").mkdir()
    (folder / "folder" / "something").touch()
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere/at/all")
    os.mkfifo(folder / "pipe")
    return {
        "missing parent": f"{folder}/no/such/file",
        "below a file": f"{folder}/file/below",
        "folder": f"{folder}/folder",
        "loop": f"{folder}/loop",
        "dangling": f"{folder}/dangling",
        "pipe": f"{folder}/pipe",
        "long": f"{folder}/{'x' * 300}",
        "nobody's": "~nosuchuser/x",
        "root": "/",
        "odd": f"{folder}/caf\udce9\n",
        "empty": "",
    }


WRITES = ("report", "export", "backup", "metrics", "token")
BAD = [
    "missing parent",
    "below a file",
    "folder",
    "loop",
    "dangling",
    "pipe",
    "long",
    "nobody's",
    "root",
    "odd",
    "empty",
]


def test_no_path_is_tried_before_the_verb_begins() -> None:
    """typer would print its usage if a file cannot be read, also of one that is only written."""
    assert [verb for verb, _, readable in find_paths() if readable] == []


def test_every_verb_with_a_path_is_tried() -> None:
    assert {verb for verb, _ in PATHS} == set(ARGUMENTS)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(("verb", "option"), PATHS)
def test_a_path_that_cannot_be_used_is_one_sentence(
    ran: dict[str, str], tmp_path: Path, verb: str, option: list[str], kind: str
) -> None:
    path = bad_paths(tmp_path)[kind]
    done = ptp(ran, verb, *ARGUMENTS[verb], *option, path)
    written = kind in ("odd", "missing parent", "dangling", "loop") and verb in WRITES
    if not (written and done.returncode == 0):
        assert "\n" not in error_of(done, 1)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
@pytest.mark.parametrize("name", ["PTP_HOME", "PTP_TASKS", "PTP_SIGNING_KEY", "PTP_TRUSTED_KEYS"])
def test_a_setting_that_names_no_usable_path_is_one_sentence(
    project: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    verb: tuple[str, ...],
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    own = project | {"PTP_HOME": str(tmp_path / "home")}
    done = ptp(own | {name: bad_paths(tmp_path)[kind]}, *verb)
    if done.returncode != 0:
        assert "\n" not in error_of(done, 1 if done.returncode != 3 else 3)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(("name", "scheme"), [("PTP_STORE", "file://"), ("PTP_LEDGER", "sqlite:///")])
def test_a_place_that_cannot_be_used_is_one_sentence(
    project: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scheme: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # an address below `~nosuchuser` is relative, and is made here
    place = {name: f"{scheme}{bad_paths(tmp_path)[kind]}", "PTP_HOME": str(tmp_path / "home")}
    environment = project | place
    for verb in (("versions",), ("reconcile",), ("predict", "tiny-sentiment", "x")):
        done = ptp(environment, *verb)
        assert done.returncode in (0, 1, 3)
        if done.returncode:
            assert "\n" not in error_of(done, done.returncode)


@pytest.mark.usefixtures("ran")
def test_a_report_goes_to_a_device_too(ran: dict[str, str]) -> None:
    assert process(ran, "report", "tiny-sentiment@1", "--to", "/dev/stdout").stdout.startswith("<!DOCTYPE html>")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("verb", "option"), [path for path in PATHS if path[0] in WRITES])
def test_a_pipe_that_nobody_reads_is_not_waited_for_and_stays(
    ran: dict[str, str], tmp_path: Path, verb: str, option: list[str]
) -> None:
    """So does a device, which root would take away from all programs of the machine."""
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in error_of(ptp(ran, verb, *ARGUMENTS[verb], *option, str(tmp_path / "pipe")), 1)
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "socket", "large"])
@pytest.mark.parametrize(("verb", "option"), [path for path in PATHS if path[0] not in WRITES])
def test_what_has_no_end_is_not_read(
    ran: dict[str, str], tmp_path: Path, verb: str, option: list[str], kind: str
) -> None:
    """Also a file of 1 TB, of which the disk holds nothing."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as made, (tmp_path / "large").open("wb") as large:
        made.bind(str(tmp_path / "socket"))
        large.truncate(2**40)
        done = ptp(ran, verb, *ARGUMENTS[verb], *option, str(tmp_path / kind))
    assert "\n" not in error_of(done, 1)


def test_a_report_that_cannot_be_written_leaves_the_old_one(ran: dict[str, str], tmp_path: Path) -> None:
    for to in ("/nonexistent/x.html", str(tmp_path), "/dev/full"):
        line = error_of(ptp(ran, "report", "tiny-sentiment@1", "--to", to), 1)
        assert line.startswith(f"error: {to}: cannot be written (")
        assert line.endswith("name a new file with --to")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- streams


def shell(environment: dict[str, str], command: str) -> subprocess.CompletedProcess[str]:
    script = command.replace("ptp", f"{sys.executable} -m flows.cli")
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)


# Lines for people, records and the help go out in three ways; each of these is a process.
@pytest.mark.parametrize("verb", ["tasks", "show tiny-sentiment --json", "--help"])
def test_a_reader_who_has_seen_enough_is_no_error(ran: dict[str, str], verb: str) -> None:
    assert shell(ran, f"ptp {verb} | true").stderr == ""


@pytest.mark.parametrize("verb", ["tasks", "show tiny-sentiment --json"])
def test_a_full_disk_behind_the_output_is_one_sentence(ran: dict[str, str], verb: str) -> None:
    done = shell(ran, f"ptp {verb} > /dev/full")
    assert error_of(done, 1) == "error: No space left on device"
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("verb", "closed"),
    [("tasks", ">&-"), ("tasks", "2>&-"), ("tasks", ">&- 2>&-"), ("show tiny-sentiment --json", ">&-")],
)
def test_a_closed_stream_takes_nothing(ran: dict[str, str], verb: str, closed: str) -> None:
    done = shell(ran, f"ptp {verb} {closed}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("verb", "said"), [("init rows.csv", "nobody can be asked"), ("approve tiny-sentiment@1", "say why with --reason")]
)
def test_a_verb_that_asks_says_so_where_standard_input_is_closed(ran: dict[str, str], verb: str, said: str) -> None:
    done = shell(ran, f"ptp {verb} <&-")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_ptp_ends_with_its_own_code_where_nothing_can_be_written(ran: dict[str, str]) -> None:
    """Python's own would be 120, which no page lists."""
    assert shell(ran | {"PYTHONUNBUFFERED": ""}, "ptp tasks >/dev/full 2>/dev/full").returncode == 1


def test_a_character_that_the_terminal_lacks_is_written_out(tmp_path: Path) -> None:
    tasks = tiny_project(tmp_path, rows=40)
    path = tasks / "tiny-sentiment.yaml"
    path.write_text(path.read_text().replace("{negative: ", "{나쁨: "))
    done = shell(environment_of(tmp_path) | {"PYTHONIOENCODING": "latin-1"}, "ptp tasks --json; ptp tasks")
    assert "\\ub098" in done.stdout
    assert done.stderr == ""


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    done = shell(dict(os.environ), f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && ptp versions")
    assert "the current folder was deleted" in error_of(done, 1)
