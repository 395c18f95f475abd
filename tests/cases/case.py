"""Runs a case: its folder, copied and entered, with the task that stands in it."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from ptpipeline.data.snapshot import take_snapshot
from ptpipeline.records.data import Snapshot
from ptpipeline.storage.folder import FolderStore
from ptpipeline.task.folder import find_task
from ptpipeline.task.task import Task

CASES = Path(__file__).parent


class Case(NamedTuple):
    """A case in a folder of its own, which is the current one."""

    folder: Path

    @property
    def task(self) -> Task:
        """The only task of the folder."""
        (name,) = (path.stem for path in (self.folder / "tasks").glob("*.yaml") if path.stem != "base_models")
        return find_task(self.folder / "tasks", name)

    def ingest(self) -> Snapshot:
        """The snapshot of the task's rows."""
        return take_snapshot(self.task, FolderStore(self.folder / "store"), self.folder / "home")

    def change(self, file: str, old: str, new: str) -> None:
        """Follow the advice of a message: put `new` in the place of `old` in the file."""
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


def enter(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The case of that name, copied into the folder."""
    case = Case(shutil.copytree(CASES / name, folder / name))
    monkeypatch.chdir(case.folder)
    return case


def count(snapshot: Snapshot) -> int:
    """The rows of all splits."""
    return sum(split.rows for split in snapshot.splits().values())
