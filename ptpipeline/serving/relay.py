"""Feedback that reached another server than the one that answered: it is passed on by way of the servers' reports.

Servers know nothing of each other but the store. Who is told of a stranger's answer puts it into the next report of its
own; who waits for feedback reads what the others report, and counts what is its own.
"""

import logging
import threading
from collections.abc import Callable, Iterable

from ptpipeline.errors import ArtifactError, Overloaded, SettingsError
from ptpipeline.records.serving import PassedOn
from ptpipeline.serving.servers import read_server_reports
from ptpipeline.serving.trials import Trials
from ptpipeline.storage import ObjectStore

LISTEN = 10.0  # seconds between two looks at the others' reports
KEPT = 60.0  # seconds that feedback stays in the report, so that each of the others has looked meanwhile
MOST = 1_000  # answers whose feedback one report passes on

log = logging.getLogger(__name__)


class Relay:
    """What one server passes on to the others, and what it hears from them; safe for several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds."""
        self._clock = clock
        self._passed: dict[PassedOn, float | None] = {}  # when it was first in a report that was stored
        self._listened: float | None = None
        self._trouble = ""
        self._lock = threading.Lock()

    def pass_on(self, told: PassedOn) -> None:
        """Put it into the reports of the next minute. Raises Overloaded if they are full."""
        with self._lock:
            if told not in self._passed and len(self._passed) >= MOST:
                raise Overloaded(
                    f"this server passes on the feedback to {MOST} answers of others in {KEPT:.0f} s: try again later, "
                    "or tell the server that answered",
                    KEPT / 4,
                )
            self._passed.setdefault(told, None)

    def list(self) -> list[PassedOn]:
        """Return what the next report says; what it has said for long enough is forgotten."""
        with self._lock:
            until = self._clock() - KEPT
            self._passed = {told: at for told, at in self._passed.items() if at is None or at > until}
            return sorted(self._passed)

    def mark(self, reported: Iterable[PassedOn]) -> None:
        """Note that a report which says this is in the store."""
        with self._lock:
            for told in reported:
                if told in self._passed and self._passed[told] is None:
                    self._passed[told] = self._clock()

    def listen(self, store: ObjectStore, server: str, trials: Trials) -> None:
        """Count what the other servers were told of this one's answers, if any waits for feedback. Raises
        ServiceUnavailable; a report that cannot, or may not, be read is logged once.
        """
        if not trials.waits or (self._listened is not None and self._clock() - self._listened < LISTEN):
            return
        self._listened = self._clock()
        try:
            reports = read_server_reports(store)
        except (ArtifactError, SettingsError) as error:
            if str(error) != self._trouble:
                log.warning("%s; feedback that other servers took is not counted", error)
            self._trouble = str(error)
            return
        self._trouble = ""
        for told in (told for report in reports if report.server != server for told in report.passed):
            trials.judge_passed(told)
