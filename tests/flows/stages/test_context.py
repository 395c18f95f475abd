"""Which tasks a run works on, and where it runs."""

import subprocess
from pathlib import Path

import pytest

from flows.stages.context import checkout_commit, flow_run_page, select_tasks
from ptpipeline.errors import NotFound
from ptpipeline.settings import Settings
from tests.flows.stages.test_approve import FILE


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in ("mood", "topic"):
        (tmp_path / f"{name}.yaml").write_text(FILE.replace("name: mood", f"name: {name}"))
    (tmp_path / "tone.yaml").write_text("name: [\n")
    return Settings(home=tmp_path, tasks=tmp_path)


@pytest.mark.parametrize(
    ("named", "found", "broken"),
    [
        (None, ["mood", "topic"], ["tone"]),
        ([], [], []),  # nobody asks for all by asking for none
        (["topic", "mood", "topic"], ["topic", "mood"], []),
    ],
)
def test_a_run_works_on_the_tasks_that_are_named_each_once(
    settings: Settings, named: list[str] | None, found: list[str], broken: list[str]
) -> None:
    selection = select_tasks(settings, named)
    assert ([task.name for task in selection.tasks], list(selection.broken)) == (found, broken)


def test_a_named_task_that_is_not_declared_ends_the_run(settings: Settings) -> None:
    with pytest.raises(NotFound, match="no task 'missing'"):
        select_tasks(settings, ["mood", "missing"])


@pytest.mark.parametrize(
    ("prefect", "run", "page"),
    [
        ("http://prefect:4200/api", "7", "http://prefect:4200/runs/flow-run/7"),
        ("http://prefect:4200/api", None, None),
        (None, "7", None),
    ],
)
def test_a_page_is_that_of_the_flow_run_of_this_process(
    monkeypatch: pytest.MonkeyPatch, prefect: str | None, run: str | None, page: str | None
) -> None:
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    if run is not None:
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run)
    assert flow_run_page(Settings(prefect=prefect)) == page


def test_the_commit_is_that_of_the_checkout_and_none_outside_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert checkout_commit() is None
    who = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run(["git", "init", "-q", "."], check=True)
    assert checkout_commit() is None  # git answers `HEAD`, and that it failed
    subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    made = subprocess.run(["git", "log", "--format=%H"], check=True, capture_output=True, text=True).stdout
    assert checkout_commit() == made.strip()
