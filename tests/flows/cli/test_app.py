"""What `ptp` says of itself, before any verb."""

import platform
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from flows.cli import app


def ask(*arguments: str) -> str:
    answer = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})
    assert answer.exit_code == 0
    return answer.output


def test_the_version_is_told_for_a_report_of_an_error() -> None:
    told = ask("--version")
    assert told.startswith(
        f"ptp {version('ptpipeline')} (Python {platform.python_version()}, torch {version('torch')}, "
    )
    assert "\n" not in told.removesuffix("\n")


@pytest.mark.parametrize("group", [(), ("release",)])
def test_no_summary_of_a_verb_is_cut_off(group: tuple[str, ...]) -> None:
    verbs = ask(*group, "--help").split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line for line in verbs if not line.endswith(".")] == [line for line in verbs if line.endswith("...")] == []
