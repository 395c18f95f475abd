"""Where the tuner writes what happens in training; the implementations are elsewhere (MLflow)."""

from collections.abc import Mapping
from typing import Literal, Protocol

from ptpipeline.progress import Standing
from ptpipeline.records.prompts import CurvePoint

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Records the members of a gang, one run each. No method raises: a tracker that fails never ends a training."""

    def start(
        self, task: str, params: Mapping[str, str | int | float], tags: Mapping[str, str], run: str | None
    ) -> str | None:
        """Begin a run of `TASK` or `TASK/TRIAL`, or continue `run` of an interrupted training; return the run's id.

        The id is None if nothing is recorded.
        """

    def log_point(self, run: str | None, point: CurvePoint) -> None:
        """Record a new point of the run's learning curve."""

    def log_standing(self, run: str | None, standing: Standing) -> None:
        """Record how far the work has come, in a run that may have ended; without one, in all that are open."""

    def finish(self, run: str | None, status: RunStatus) -> None:
        """Record that the run is over."""


class NoTracker:
    """Records nothing."""

    def start(
        self, task: str, params: Mapping[str, str | int | float], tags: Mapping[str, str], run: str | None
    ) -> str | None:
        return None

    def log_point(self, run: str | None, point: CurvePoint) -> None:
        return None

    def log_standing(self, run: str | None, standing: Standing) -> None:
        return None

    def finish(self, run: str | None, status: RunStatus) -> None:
        return None
