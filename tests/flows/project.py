"""A tiny project in a folder: tasks, a folder store and SQLite, for tests of whole chains."""

import shutil
from pathlib import Path

from flows.stages.chain import run_task
from flows.stages.context import Context, select_tasks
from flows.stages.outcome import Outcome
from ptpipeline.settings import Settings
from ptpipeline.task.task import Task
from tests.tiny import tiny_project


class Project:
    """A tasks folder, a home, and the lines that the stages report."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self._live_in(folder, tiny_project(folder, names))

    def _live_in(self, folder: Path, tasks: Path) -> None:
        self.folder = folder
        self.tasks = tasks
        self.settings = Settings(
            home=folder / "home",
            tasks=tasks,
            store=f"file://{folder / 'store'}",
            ledger=f"sqlite:///{folder / 'ledger.db'}",
            dtype="float32",
        )
        self.lines: list[str] = []

    def copy(self, folder: Path) -> "Project":
        """The project as it is now, in another folder; its task files name their rows and base there."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        for path in (folder / "tasks").glob("*.yaml"):
            path.write_text(path.read_text().replace(str(self.folder), str(folder)))
        copied = Project.__new__(Project)
        copied._live_in(folder, folder / "tasks")
        copied.lines += self.lines
        return copied

    @property
    def stages(self) -> Context:
        """What the stages work with, fresh, as a new process would have it."""
        context = Context.open(self.settings)
        context.report = self.lines.append
        return context

    def declared(self) -> list[Task]:
        """The tasks whose files are sound."""
        return select_tasks(self.settings).tasks

    def task(self, name: str = "tiny-sentiment") -> Task:
        return select_tasks(self.settings, [name]).tasks[0]

    def run(self, name: str = "tiny-sentiment") -> Outcome:
        self.lines.clear()
        return run_task(self.stages, self.task(name))

    def edit(self, old: str, new: str, name: str = "tiny-sentiment") -> None:
        path = self.tasks / f"{name}.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    @property
    def trained(self) -> bool:
        return any("step 1/" in line for line in self.lines)
