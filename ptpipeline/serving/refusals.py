"""Promotions that a server did not take: why, and when each is tried again. What was there before stays."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ptpipeline.errors import PtpError, ServiceUnavailable, place_of
from ptpipeline.records.serving import Refused

FIRST_WAIT, LONGEST_WAIT = 2.0, 300.0  # seconds until the next try: somebody may have mended what a pointer names

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """An alias of a task."""

    task: str
    alias: str


class _Refusal(NamedTuple):
    """Why what a pointer of that tag shows was not taken, how often it was tried, and when it is tried again."""

    etag: str | None
    reason: str
    tries: int
    again: float


class Refusals:
    """At most one per alias. clock: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refused: dict[Place, _Refusal] = {}

    def find(self, place: Place) -> str | None:
        """Return why the alias is refused, if it is not to be tried again yet."""
        refusal = self._refused.get(place)
        return refusal.reason if refusal and self._clock() < refusal.again else None

    def stands(self, place: Place, etag: str | None) -> bool:
        """Whether what a pointer of that tag shows was refused, and is not to be tried again yet."""
        refusal = self._refused.get(place)
        return refusal is not None and refusal.etag == etag and self._clock() < refusal.again

    def list(self) -> list[Refused]:
        """Return what is refused, by task and alias."""
        return [Refused(*place, refusal.reason) for place, refusal in sorted(self._refused.copy().items())]

    def forget(self, place: Place) -> None:
        """Note that the alias shows nothing that is refused."""
        self._refused.pop(place, None)

    @contextmanager
    def trying(self, place: Place, etag: str | None) -> Iterator[None]:
        """Refuse what a pointer of that tag shows if the block fails, whatever it raises.

        Raises ServiceUnavailable alone: the store is away, and nothing is known of the promotion.
        """
        try:
            yield
        except ServiceUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a prompt does to the model, the others are served
            reason = str(error) if isinstance(error, PtpError) else place_of(error)
            before = self._refused.get(place)
            if before is None or before.reason != reason:
                log.error("%s@%s: refused: %s", *place, reason)
            tries = before.tries + 1 if before and before.etag == etag else 1
            wait = min(FIRST_WAIT * 2.0 ** (tries - 1), LONGEST_WAIT)
            self._refused[place] = _Refusal(etag, reason, tries, self._clock() + wait)
