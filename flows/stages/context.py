"""What all stages work with: settings, registry, tasks, the base models that were loaded, and stored snapshots."""

import logging
import subprocess
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from ptpipeline.models.base import prepare_base
from ptpipeline.records.data import Snapshot, Split
from ptpipeline.settings import Settings
from ptpipeline.task.folder import find_task, sound_tasks
from ptpipeline.task.task import Task
from ptpipeline.tuning.tracker import NoTracker, Tracker
from registry.registry import Registry, open_for_writing

if TYPE_CHECKING:
    from ptpipeline.serving.engine import Engine

MACHINE = "nightly"  # who moves an alias if no person does

log = logging.getLogger("ptpipeline.stages")


class Context:
    """One set of settings; heavy imports and base models are loaded by the first stage that needs them."""

    def __init__(self, settings: Settings, registry: Registry, report: Callable[[str], None] = log.info) -> None:
        self.settings = settings
        self.registry = registry
        self.report = report
        self.texts: dict[str, dict[str, str]] = {}  # of the last evaluation, by its key: the texts generated, by row id
        self._engines: dict[str, Engine] = {}

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open the registry that the settings name, for writing."""
        return cls(settings, open_for_writing(settings))

    @cached_property
    def tracker(self) -> Tracker:
        """Where training is followed: in MLflow, if the settings name a server."""
        if self.settings.mlflow is None:
            return NoTracker()
        from registry.mlflow.tracking import Tracking

        return Tracking(self.settings.mlflow)

    def engine(self, base_model: str) -> "Engine":
        """Return the engine over that base model, loaded once; training uses its `base` too.

        Raises what `prepare_base` and `load_base` raise if the base model cannot be fetched or loaded.
        """
        from ptpipeline.models.load import load_base
        from ptpipeline.serving.engine import Engine

        if base_model not in self._engines:
            self._engines[base_model] = Engine(load_base(prepare_base(base_model, self.settings), self.settings.dtype))
        return self._engines[base_model]

    def snapshot(self, task: str, digest: str) -> Snapshot:
        """Read the task's snapshot of that digest; NotFound or ArtifactError if it is missing or altered."""
        from ptpipeline.data.snapshot import read_snapshot

        return read_snapshot(self.registry.store, task, digest)

    def has_rows(self, snapshot: Snapshot) -> bool:
        """Whether the snapshot's rows are still stored."""
        from ptpipeline.storage.keys import snapshot_manifest_key

        return self.registry.store.exists(snapshot_manifest_key(snapshot.task, snapshot.digest))

    def row_ids(self, snapshot: Snapshot, split: Split) -> list[str]:
        """Return the ids of the rows of a split."""
        from ptpipeline.data.snapshot import load_split

        return [row.id for row in load_split(self.registry.store, snapshot, split)]


class Selection(NamedTuple):
    """Tasks to work on, and one sentence for each task whose file is broken."""

    tasks: list[Task]
    broken: dict[str, str]


def select_tasks(settings: Settings, names: Sequence[str] | None = None) -> Selection:
    """Return the named tasks, or all that are declared.

    A broken file ends a run over all tasks only for its own task; NotFound or TaskFileError for a task that is named.
    """
    if names is None:
        return Selection(*sound_tasks(settings.tasks))
    return Selection([find_task(settings.tasks, name) for name in dict.fromkeys(names)], {})


def checkout_commit() -> str | None:
    """Return the commit of the project's checkout, None outside of one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path.cwd(), check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
