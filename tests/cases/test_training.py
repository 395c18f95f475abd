"""Files that were told, or went wrong, only after training had begun."""

from pathlib import Path

import pytest

from flows.stages.chain import run_task
from flows.stages.context import Context
from flows.stages.outcome import Outcome
from ptpipeline.errors import ContextError
from ptpipeline.settings import Settings
from ptpipeline.task.folder import find_task
from tests.cases.case import enter
from tests.tiny import tiny_base


class Run:
    """The case 91-train on the tiny base, and the lines that its runs report."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = enter("91-train", folder, monkeypatch).folder
        tiny_base(self.folder / "base")
        self.lines: list[str] = []

    def run(self, name: str) -> Outcome:
        """Run one of its tasks."""
        store, ledger = f"file://{self.folder / 'store'}", f"sqlite:///{self.folder / 'ledger.db'}"
        home, tasks = self.folder / "home", self.folder / "tasks"
        context = Context.open(Settings(home=home, tasks=tasks, store=store, ledger=ledger, dtype="float32"))
        context.report = self.lines.append
        return run_task(context, find_task(tasks, name))


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["longrow", "longtrain"])
def test_a_long_row_is_told_by_its_line_before_any_training(name: str, case: Run) -> None:
    with pytest.raises(
        ContextError, match=rf"task {name}: too long: {name}\.csv: line 242; a text may have \d+ tokens"
    ):
        case.run(name)
    assert not any("step 1/" in line for line in case.lines)


@pytest.mark.parametrize("name", ["specialtext", "speciallabel"])
def test_names_of_control_tokens_train_as_text(name: str, case: Run) -> None:
    assert case.run(name).verdict == "passed"
