"""What the tuner reports to while it trains; who listens is not its business."""

from collections.abc import Mapping
from typing import Literal, Protocol

from ptpipeline.records import CurvePoint

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Follows the members of a gang, one run each. No method raises: losing sight of a training never ends it."""

    def start(
        self, task: str, params: Mapping[str, str | int | float], tags: Mapping[str, str], run: str | None
    ) -> str | None:
        """Begin a run of `TASK`, or of `TASK/TRIAL`, or go on with `run` of a training that was interrupted; its id,
        None where nobody follows it.
        """

    def point(self, run: str | None, point: CurvePoint) -> None:
        """A new point of the run's learning curve."""

    def finish(self, run: str | None, status: RunStatus) -> None:
        """The run is over."""


class NoTracker:
    """Nobody follows."""

    def start(
        self, task: str, params: Mapping[str, str | int | float], tags: Mapping[str, str], run: str | None
    ) -> str | None:
        return None

    def point(self, run: str | None, point: CurvePoint) -> None:
        return None

    def finish(self, run: str | None, status: RunStatus) -> None:
        return None
