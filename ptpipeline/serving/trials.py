"""A shadow's answers beside those that were given: how often they differ, and which ones feedback calls right.

No text is kept: of each request a hash of what each version answered, until the right answer is told.
"""

import asyncio
import hashlib
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, NotFound, PtpError, place_of
from ptpipeline.foreign import parse_record, read_file
from ptpipeline.private import write_private
from ptpipeline.records.answers import Tally
from ptpipeline.records.base import Record
from ptpipeline.serving.served import Served

REMEMBERED = 100_000  # answers whose right label may still be told
AT_ONCE = 8  # requests of which shadows are asked at the same time; beyond them a shadow is not asked
ERROR = 0.05  # the chance of ever calling two equal versions different
MOST_BYTES = 2**20
FILE = "trials.json"

log = logging.getLogger(__name__)


def compute_evidence(first: int, second: int) -> float:
    """Return the logarithm of the evidence against two versions being right equally often.

    first, second: the answers on which they differed and the one version alone was right, or the other. If both were
    equally good, each such answer would be a fair coin. The evidence is the mean likelihood of all other coins over
    that of a fair one, under Jeffreys' prior (Lindon & Malek 2022, section 3; Ville 1939): looked at after every
    answer, it exceeds 1/e ever with a chance of at most e.
    """
    half, count = math.lgamma(0.5), first + second
    mixture = math.lgamma(first + 0.5) + math.lgamma(second + 0.5) - math.lgamma(count + 1) - 2 * half
    return mixture + count * math.log(2)


def is_different(tally: Tally) -> bool:
    """Whether feedback shows, at any time that one looks, that one version is right more often than the other."""
    return compute_evidence(tally.first, tally.second) >= -math.log(ERROR)


class _Pair(NamedTuple):
    """What both versions answered to a text, by its hash."""

    place: tuple[str, str, int]
    own: bytes
    shadow: bytes


class _Kept(Record):
    """The tallies as they are kept on disk."""

    store: str
    tallies: list[Tally]


class Trials:
    """The tallies of all shadows of a server, by task, alias and promotion; safe for several threads."""

    def __init__(self, home: Path, store: str) -> None:
        """home: where the tallies are kept over a restart. store: the address of the store that they belong to."""
        self._path, self._store = home / FILE, store
        self._pairs: OrderedDict[tuple[str, int], _Pair] = OrderedDict()
        self._tallies: dict[tuple[str, str, int], Tally] = {}
        self._asking = set[asyncio.Task[None]]()
        self._lock = threading.Lock()
        self._load()

    def mirror(
        self, served: Served, request: str, own: Mapping[int, str], ask: Callable[[str], Awaitable[Sequence[str]]]
    ) -> None:
        """Let the shadow be asked what was asked, beside the event loop's other work, and note how its answers compare.

        request: its id, which feedback names. own: the answers that were given, by the number of their text. ask: asks
        the prompt of that digest the same texts, in that order. If many shadows are being asked, this one is not.
        """
        if served.shadow and own and len(self._asking) < AT_ONCE:
            task = asyncio.create_task(self._ask(served, served.shadow, request, own, ask))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(
        self,
        served: Served,
        shadow: Served,
        request: str,
        own: Mapping[int, str],
        ask: Callable[[str], Awaitable[Sequence[str]]],
    ) -> None:
        try:
            answers = await ask(shadow.digest)
        except PtpError as error:
            log.info("shadow %s did not answer: %s", shadow.name, error)
            self._count(served, failed=1)
        except Exception as error:  # noqa: BLE001 - a shadow never disturbs what answers
            log.error("shadow %s did not answer: %s", shadow.name, place_of(error))
            self._count(served, failed=1)
        else:
            self.compare(served, request, own, answers)

    def compare(self, served: Served, request: str, own: Mapping[int, str], shadow: Sequence[str]) -> None:
        """Note what both versions answered to the texts of a request, of which `own` has the numbers."""
        place = _find_place(served)
        with self._lock:
            for (number, one), other in zip(own.items(), shadow, strict=True):
                self._pairs[request, number] = _Pair(place, _hash(one), _hash(other))
                if len(self._pairs) > REMEMBERED:
                    self._pairs.popitem(last=False)
        self._count(served, asked=len(own), differ=sum(map(str.__ne__, own.values(), shadow)))

    def judge(self, request: str, number: int, right: str) -> bool:
        """Note the right answer to a text of a request; return whether it is known, and was not judged before."""
        with self._lock:
            pair = self._pairs.pop((request, number), None)
            tally = self._tallies.get(pair.place) if pair else None
            if pair is None or tally is None:
                return False
            own, shadow = pair.own == _hash(right), pair.shadow == _hash(right)
            self._tallies[pair.place] = tally._replace(
                judged=tally.judged + 1,
                first=tally.first + (own and not shadow),
                second=tally.second + (shadow and not own),
            )
            return True

    def list(self) -> list[Tally]:
        """Return the tallies, by task and alias."""
        with self._lock:
            return sorted(self._tallies.values())

    def keep(self, promotions: Sequence[tuple[str, str, int]]) -> None:
        """Forget all tallies but those of these promotions (task, alias, seq), and write them to disk."""
        with self._lock:
            self._tallies = {place: self._tallies[place] for place in promotions if place in self._tallies}
            tallies = sorted(self._tallies.values())
        if not tallies and not self._path.exists():
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, _Kept(store=self._store, tallies=tallies).model_dump_json().encode())
        except OSError as error:
            log.warning("%s: cannot be written (%s); a restart would begin the comparisons anew", self._path, error)

    def _count(self, served: Served, asked: int = 0, differ: int = 0, failed: int = 0) -> None:
        place, shadow = _find_place(served), served.shadow
        if shadow is None:
            return
        with self._lock:
            tally = self._tallies.get(place) or Tally(*place, served.number or 0, shadow.number or 0)
            self._tallies[place] = tally._replace(
                asked=tally.asked + asked, differ=tally.differ + differ, failed=tally.failed + failed
            )

    def _load(self) -> None:
        try:
            kept = parse_record(_Kept, read_file(self._path, MOST_BYTES), str(self._path))
        except NotFound:
            return
        except ArtifactError as error:
            log.warning("%s; the comparisons begin anew", error)
            return
        if kept.store == self._store:
            self._tallies = {(tally.task, tally.alias, tally.seq): tally for tally in kept.tallies}


def _hash(answer: str) -> bytes:
    return hashlib.sha256(answer.encode()).digest()[:16]


def _find_place(served: Served) -> tuple[str, str, int]:
    return served.task, served.alias, served.seq
