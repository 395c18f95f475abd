"""The example of docs/operations.md that starts runs by REST, taken from the page and run by bash on a real stack."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from flows.server.trigger import Finished, follow
from tests.e2e.conftest import Project

pytestmark = [pytest.mark.servers, pytest.mark.soak, pytest.mark.timeout(1800)]

PAGE = Path(__file__).parents[2] / "docs/operations.md"


def read_example(project: Project) -> str:
    """The lines behind `ptp trigger`, with this stack's credentials, address and task in place of the page's."""
    block = next(block for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S) if "ask()" in block)
    _, begin, rest = block.partition("set -a;")
    example = begin + rest
    for old, new in (
        (".ptp/stack.env", shlex.quote(str(project.home / "stack.env"))),
        ("http://127.0.0.1:4200/api", project.prefect),
        ("movie-sentiment", "fruit"),
    ):
        assert old in example
        example = example.replace(old, new)
    return example


def run(project: Project, example: str) -> str:
    """What bash prints for it, as it does for a person without a proxy."""
    programs = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example],
        env={"PATH": programs, "HOME": str(project.folder)},
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def state_at_the_end(project: Project, run_id: str) -> str:
    *_, last = follow(project.prefect, run_id)
    assert isinstance(last, Finished)
    return last.state


def read_run(printed: str) -> dict[str, Any]:
    """The run that the example's last line prints."""
    answer = json.loads(printed.splitlines()[-1])
    assert "idempotency_key" in answer, answer
    return cast("dict[str, Any]", answer)


def test_the_example_starts_one_run_by_each_way_and_none_when_it_is_repeated(project: Project) -> None:
    example = read_example(project)
    printed = run(project, example)
    by_prefect = re.search(r"UUID: *([0-9a-f-]{36})", printed)
    assert by_prefect is not None
    by_rest = "\n".join(line for line in example.splitlines() if not line.startswith("prefect "))
    if "idempotency_key" not in printed:  # Prefect's database is busy: send the same again, says the page
        print(printed)
        time.sleep(5)
        printed = run(project, by_rest)
    started = read_run(printed)
    assert started["idempotency_key"] == "2026-11-21 movie"
    assert started["parameters"]["request"] == {"tasks": ["fruit"], "reason": "new rows"}
    assert [state_at_the_end(project, run_id) for run_id in (by_prefect[1], started["id"])] == ["COMPLETED"] * 2
    assert read_run(run(project, by_rest))["id"] == started["id"]
