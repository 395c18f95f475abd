"""Runs tasks of a case through the whole chain, on the tiny base."""

from pathlib import Path

import pytest

from flows.stages.chain import run_task
from flows.stages.context import Context
from flows.stages.outcome import Outcome
from ptpipeline.settings import Settings
from ptpipeline.task.folder import find_task
from tests.cases.case import Case, enter
from tests.tiny import tiny_base


class Run:
    """A case beside the tiny base, and the lines that its runs report."""

    def __init__(self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.case: Case = enter(name, folder, monkeypatch)
        self.folder = self.case.folder
        tiny_base(self.folder / "base")
        self.lines: list[str] = []
        self.settings = Settings(
            home=self.folder / "home",
            tasks=self.folder / "tasks",
            store=f"file://{self.folder / 'store'}",
            ledger=f"sqlite:///{self.folder / 'ledger.db'}",
            dtype="float32",
        )

    def open(self) -> Context:
        """What the stages work with, as a new process would have it."""
        context = Context.open(self.settings)
        context.report = self.lines.append
        return context

    def run(self, name: str) -> Outcome:
        """Run one of its tasks."""
        return run_task(self.open(), find_task(self.folder / "tasks", name))

    @property
    def trained(self) -> bool:
        """Whether a step of training was reported."""
        return any("step 1/" in line for line in self.lines)
