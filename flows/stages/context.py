"""What all stages work with: settings, registry, tasks, the base models that were loaded, and stored snapshots."""

import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from ptpipeline.models.base import prepare_base
from ptpipeline.progress import INTERVAL, Display, Lines, Standing, watch
from ptpipeline.records.data import Snapshot, Split
from ptpipeline.settings import Settings
from ptpipeline.task.folder import find_task, sound_tasks
from ptpipeline.task.task import Task
from ptpipeline.tuning.tracker import NoTracker, Tracker
from registry.registry import Registry, open_for_writing

if TYPE_CHECKING:
    from ptpipeline.serving.engine import Engine
    from ptpipeline.tuning.ranks import Ranks

MACHINE = "nightly"  # who moves an alias if no person does

log = logging.getLogger("ptpipeline.stages")


class Context:
    """One set of settings; heavy imports and base models are loaded by the first stage that needs them."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        report: Callable[[str], None] = log.info,
        display: Display | None = None,
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.report = report
        self.texts: dict[str, dict[str, str]] = {}  # of the last evaluation, by its key: the texts generated, by row id
        self.display = display
        self.started_by = MACHINE  # who runs this, as the history would name them: they may not approve what they made
        self.ranks: Ranks | None = None  # the processes that share its training, if there are others
        self._engines: dict[tuple[str, str], Engine] = {}
        self._dtypes: dict[str, str] = {}

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

        return Tracking(self.settings.mlflow, flow_run_page(self.settings))

    def watch(self, name: str, tracker: Tracker | None = None, run: str | None = None) -> AbstractContextManager[None]:
        """Show how far the work inside has come: on the display, else by lines; the tracker records it in the run, or
        in those that are open.
        """
        display = self.display or Lines(self.report)
        return watch(name, _Recorded(display, tracker, run) if tracker else display)

    def engine(self, base_model: str, dtype: str | None = None) -> "Engine":
        """Return the engine over that base model, loaded once; training uses its `base` too.

        dtype: its compute type; by default the one that this machine takes. Raises what `prepare_base` and `load_base`
        raise if the base model cannot be fetched or loaded.
        """
        from ptpipeline.models.load import load_base
        from ptpipeline.serving.engine import Engine

        dtype = dtype or self.choose_dtype(base_model)
        if (base_model, dtype) not in self._engines:
            prepared = prepare_base(base_model, self.settings)
            self._engines[base_model, dtype] = Engine(load_base(prepared, dtype))
        return self._engines[base_model, dtype]

    def choose_dtype(self, base_model: str) -> str:
        """Return the type that this machine computes the base in, and say why the first time."""
        from ptpipeline.models.compute_type import choose_dtype

        if base_model not in self._dtypes:
            choice = choose_dtype(prepare_base(base_model, self.settings), self.settings)
            self.report(f"{base_model}: computes in {choice.dtype}: {choice.reason}")
            self._dtypes[base_model] = choice.dtype
        return self._dtypes[base_model]

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


class _Recorded:
    """A display, beside which a tracker records the same in a run, but never more often than lines come."""

    def __init__(self, display: Display, tracker: Tracker, run: str | None) -> None:
        self.interval = display.interval
        self._display, self._tracker, self._run = display, tracker, run
        self._recorded = time.monotonic()

    def show(self, standing: Standing) -> None:
        self._display.show(standing)
        if time.monotonic() - self._recorded >= min(INTERVAL - 1, 16 * self.interval):
            self._recorded = time.monotonic()
            self._tracker.log_standing(self._run, standing)

    def close(self) -> None:
        self._display.close()


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


def flow_run_page(settings: Settings) -> str | None:
    """Return the address of the page of the flow run that this process works on; None if it works on none."""
    run = os.environ.get("PREFECT__FLOW_RUN_ID")
    if settings.prefect is None or run is None:
        return None
    return f"{settings.prefect.removesuffix('/api')}/runs/flow-run/{run}"


def checkout_commit() -> str | None:
    """Return the commit of the project's checkout, None outside of one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path.cwd(), check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
