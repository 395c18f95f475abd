"""Feedback that reached another server than the one that answered: it is passed on by way of the servers' reports.

Servers know nothing of each other but the store. Who is told of a stranger's answer puts it into the next report of its
own; who waits for feedback reads what the others report, and counts what is its own.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, NotFound, Overloaded, SettingsError
from ptpipeline.records.serving import PassedOn
from ptpipeline.serving.servers import parse_server_report
from ptpipeline.serving.trials import Trials
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import SERVERS, server_key
from ptpipeline.storage.objects import is_key

LISTEN = 10.0  # seconds between two looks at the others' reports
KEPT = 60.0  # seconds that feedback stays in the report, so that each of the others has looked meanwhile
MOST = 1_000  # answers whose feedback one report passes on
RECENT = 120.0  # seconds before this server's own report: an older one is of a server that ended

log = logging.getLogger(__name__)


class _Passed(NamedTuple):
    """What is passed on, whose it is, and when it was first in a report that was stored."""

    told: PassedOn
    caller: str
    at: float | None = None


class Relay:
    """What one server passes on to the others, and what it hears from them; safe for several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds."""
        self._clock = clock
        self._passed: dict[tuple[str, int, str], _Passed] = {}  # by request, number and task
        self._listened: float | None = None
        self._resumed = False
        self._troubles = set[str]()
        self._lock = threading.Lock()

    def pass_on(self, told: PassedOn, caller: str) -> bool:
        """Put it into the reports of the next minute; return whether it is there: what was told of a text first stays.

        Raises Overloaded if the caller may pass on no more. A caller may have as many as there is room left for others,
        as in `serving.batcher`.
        """
        with self._lock:
            known = self._passed.get(told[:3])
            if known is not None:
                return known.told == told
            own = sum(passed.caller == caller for passed in self._passed.values())
            if own + 1 > MOST - len(self._passed):
                raise Overloaded(
                    f"this server passes on the feedback to {MOST} answers of others in {KEPT:.0f} s, and to {own} of "
                    "yours already: try again later, or tell the server that answered",
                    KEPT / 4,
                )
            self._passed[told[:3]] = _Passed(told, caller)
            return True

    def list(self) -> list[PassedOn]:
        """Return what the next report says; what it has said for long enough is forgotten."""
        with self._lock:
            until = self._clock() - KEPT
            self._passed = {place: one for place, one in self._passed.items() if one.at is None or one.at > until}
            return sorted(one.told for one in self._passed.values())

    def mark(self, reported: Iterable[PassedOn]) -> None:
        """Note that a report which says this is in the store."""
        with self._lock:
            for told in reported:
                passed = self._passed.get(told[:3])
                if passed is not None and passed.at is None:
                    self._passed[told[:3]] = passed._replace(at=self._clock())

    def resume(self, store: ObjectStore, server: str) -> None:
        """Pass on for a while longer what the last report of this server said, if it was started again since: the
        others may not have looked before this one writes the next. Raises ServiceUnavailable.
        """
        if self._resumed or not server:
            return
        try:
            told = parse_server_report(store, server_key(server), store.read(server_key(server)).body).passed
        except (NotFound, ArtifactError, SettingsError):
            told = []
        self._resumed = True
        with self._lock:
            for one in told[:MOST]:
                self._passed.setdefault(one[:3], _Passed(one, ""))

    def listen(self, store: ObjectStore, server: str, trials: Trials) -> None:
        """Count what other servers were told of this one's answers, if any waits for feedback. What cannot be read is
        logged once. Raises ServiceUnavailable.
        """
        if not trials.waits or (self._listened is not None and self._clock() - self._listened < LISTEN):
            return
        self._listened = self._clock()
        troubles = set[str]()
        try:
            for told in _read_passed(store, server, troubles):
                trials.judge_passed(told)
        except SettingsError as error:  # the reports may not be listed
            troubles.add(str(error))
        for trouble in sorted(troubles - self._troubles):
            log.warning("%s; feedback that other servers took is not counted", trouble)
        self._troubles = troubles


def _read_passed(store: ObjectStore, server: str, troubles: set[str]) -> Iterator[PassedOn]:
    """Yield what the reports of the servers that run pass on; those that cannot be read are added to the troubles.

    Reports of servers that ended stay in the store: after a year of updates there are thousands. Whether one is recent
    is seen by the store's clock, from this server's own report, which it writes each minute.
    """
    written = {at.key: at.modified for at in store.list_objects(SERVERS) if is_key(at.key)}
    own = written.get(server_key(server)) if server else None
    for key, modified in written.items():
        if own is not None and (own - modified).total_seconds() > RECENT:
            continue
        try:
            report = parse_server_report(store, key, store.read(key).body)
        except NotFound:  # removed since it was listed
            continue
        except (ArtifactError, SettingsError) as error:
            troubles.add(str(error))
            continue
        yield from report.passed[:MOST]
