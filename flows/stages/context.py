"""What all stages work with: settings, registry, snapshots, and the base models that were loaded."""

import logging
import subprocess
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ptpipeline.models.base import prepare_base
from ptpipeline.records import Snapshot
from ptpipeline.settings import Settings
from ptpipeline.task.task import Task
from ptpipeline.tuning.tracker import NoTracker, Tracker
from registry.registry import Registry, open_for_writing

if TYPE_CHECKING:
    from ptpipeline.serving.engine import Engine

log = logging.getLogger("ptpipeline.stages")


class Context:
    """One set of settings; heavy imports and a base model come with the first stage that needs them."""

    def __init__(self, settings: Settings, registry: Registry, report: Callable[[str], None] = log.info) -> None:
        self.settings = settings
        self.registry = registry
        self.report = report
        self._engines: dict[str, Engine] = {}

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """All over the registry that the settings name."""
        return cls(settings, open_for_writing(settings))

    def ingest(self, task: Task) -> Snapshot:
        """The task's snapshot; an unchanged source makes no new one."""
        from ptpipeline.data.snapshot import ingest
        from ptpipeline.data.sources import source_key

        key = source_key(task, self.settings.home)
        known = self.registry.ledger.snapshot_for(task.name, key)
        if known is not None:
            self.registry.ledger.save_snapshot(known)  # used again: from here on the garbage collection leaves it alone
            if self.holds(known):
                self.report(f"{task.name}: source unchanged, snapshot {known.digest[:12]} stands")
                return known
        snapshot = ingest(task, self.registry.store, self.settings.home)
        self.registry.ledger.save_snapshot(snapshot)
        if not self.holds(snapshot):  # an old one of the same rows went between the two
            snapshot = ingest(task, self.registry.store, self.settings.home)
        noticed = ", ".join(f"{check.name} {check.count}" for check in snapshot.checks if check.outcome == "warned")
        rows = ", ".join(f"{name} {info.rows}" for name, info in snapshot.splits().items())
        self.report(f"{task.name}: snapshot {snapshot.digest[:12]}, rows: {rows}; noticed: {noticed or 'nothing'}")
        return snapshot

    @cached_property
    def tracker(self) -> Tracker:
        """Where training is followed: MLflow where there is one."""
        if self.settings.mlflow is None:
            return NoTracker()
        from registry.mlflow.tracking import Tracking

        return Tracking(self.settings.mlflow)

    def engine(self, base_model: str) -> "Engine":
        """The engine over that base model, loaded once; its `base` is also what trains.

        Raises what `prepare_base` and `load_base` raise where the base cannot be had or loaded.
        """
        from ptpipeline.models.load import load_base
        from ptpipeline.serving.engine import Engine

        if base_model not in self._engines:
            self._engines[base_model] = Engine(load_base(prepare_base(base_model, self.settings), self.settings.dtype))
        return self._engines[base_model]

    def snapshot(self, task: str, digest: str) -> Snapshot:
        """The task's snapshot of that digest; NotFound or ArtifactError where it is missing or altered."""
        from ptpipeline.data.snapshot import read_snapshot

        return read_snapshot(self.registry.store, task, digest)

    def holds(self, snapshot: Snapshot) -> bool:
        """Whether its rows are still stored."""
        from ptpipeline.data.snapshot import MANIFEST_FILE, snapshot_prefix

        return self.registry.store.exists(f"{snapshot_prefix(snapshot.task, snapshot.digest)}/{MANIFEST_FILE}")


def checkout_commit() -> str | None:
    """The commit of the project's checkout, None outside of one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path.cwd(), check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
