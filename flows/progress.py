"""How far a flow run has come: lines in its log, and one progress bar per task, or gang, on its page in Prefect."""

import logging
import re
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from ptpipeline.progress import Lines, Standing

log = logging.getLogger("ptpipeline.flows")


class Bars(Lines):
    """A display that moves bars; a server that is away costs the bar and nothing else."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger("ptpipeline.stages").info)
        self._bars: dict[str, UUID] = {}
        self._open: str | None = None
        self._lost = False

    def show(self, standing: Standing) -> None:
        """Report a line, and move the bar of the task that it is about."""
        super().show(standing)
        self._open = standing.phase.partition(": ")[0]
        self._move(self._open, 100 * standing.done / standing.total if standing.total else 0.0, str(standing))

    def close(self) -> None:
        """Fill the bar of what has ended; what went wrong is told by the task run's own state."""
        if self._open is not None:
            self._move(self._open, 100.0, f"{self._open}: ended")
            self._open = None

    def _move(self, name: str, percent: float, description: str) -> None:
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):  # the training would stand still meanwhile
                if name in self._bars:
                    update_progress_artifact(self._bars[name], percent, description)
                else:
                    key = f"progress-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}"
                    self._bars[name] = create_progress_artifact(percent, key, description)  # type: ignore[assignment]
        except (HTTPError, PrefectException) as error:
            if not self._lost:
                log.warning("Prefect shows no progress bar of %s (%s)", name, type(error).__name__)
            self._lost = True
