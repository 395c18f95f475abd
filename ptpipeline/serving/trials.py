"""Two versions that stand beside each other: how often a shadow answers otherwise, and which one feedback calls right.

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
from ptpipeline.records.base import Record
from ptpipeline.records.serving import CanaryTally, PassedOn, Tally
from ptpipeline.serving.served import Served

REMEMBERED = 100_000  # answers whose right label may still be told
AT_ONCE = 8  # requests of which shadows are asked at the same time; beyond them a shadow is not asked
ERROR = 0.05  # the chance of ever calling two equal versions different
MOST_BYTES = 2**20
FILE = "trials.json"

Place = tuple[str, str, int]  # task, alias and seq of the promotion that let two versions stand beside each other

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


def is_different(tally: Tally | CanaryTally) -> bool:
    """Whether feedback shows, at any time that one looks, that one version is right more often than the other."""
    return compute_evidence(tally.first, tally.second) >= -math.log(ERROR)


def describe_shadow(tally: Tally) -> str:
    """Return what a tally says of a shadow, as one sentence."""
    asked = f"{tally.task}@{tally.alias}: shadow {tally.shadow} answered {tally.asked} texts, {tally.differ} of them "
    asked += f"otherwise than version {tally.version}"
    if tally.failed:
        asked += f", and failed at {tally.failed} requests"
    if not tally.judged:
        return f"{asked}; no feedback yet"
    judged = f"of {tally.judged} with feedback, it alone was right in {tally.second}, version {tally.version} alone in "
    return f"{asked}; {judged}{tally.first}: {_name_better(tally, tally.shadow)}"


def describe_canary(tally: CanaryTally) -> str:
    """Return what a tally says of a canary, as one sentence."""
    if not (tally.judged or tally.canary_judged):
        return f"{tally.task}@{tally.alias}: canary {tally.canary} beside version {tally.version}: no feedback yet"
    return (
        f"{tally.task}@{tally.alias}: of the answers with feedback, {tally.canary_right} of {tally.canary_judged} of "
        f"canary {tally.canary} were right, {tally.right} of {tally.judged} of version {tally.version}; in pairs of "
        f"one answer each, it alone was right in {tally.second}, version {tally.version} alone in {tally.first}: "
        f"{_name_better(tally, tally.canary)}"
    )


def _name_better(tally: Tally | CanaryTally, second: int) -> str:
    if not is_different(tally):
        return "no difference is shown"
    better = second if tally.second > tally.first else tally.version
    return f"version {better} is right more often (error below {ERROR:.0%})"


class Given(NamedTuple):
    """What was answered to a text, by its hash, and what the shadow answered, if the alias has one.

    labels: those of both versions, one of which is right; empty if a text may be.
    """

    place: Place
    version: int | None
    labels: frozenset[str]
    own: bytes
    shadow: bytes | None = None

    @property
    def task(self) -> str:
        return self.place[0]


class _Judged(NamedTuple):
    """The newest judged answer of a version, which waits for one of the other version."""

    version: int | None
    right: bool


class _Kept(Record):
    """The tallies as they are kept on disk."""

    store: str
    tallies: list[Tally]
    canaries: tuple[CanaryTally, ...] = ()


class Trials:
    """The tallies of all shadows and canaries of a server, by task, alias and promotion; safe for several threads."""

    def __init__(self, home: Path, store: str) -> None:
        """home: where the tallies are kept over a restart. store: the address of the store that they belong to."""
        self._path, self._store = home / FILE, store
        self._given: OrderedDict[tuple[str, int], Given] = OrderedDict()
        self._tallies: dict[Place, Tally] = {}
        self._canaries: dict[Place, CanaryTally] = {}
        self._waiting: dict[Place, _Judged] = {}
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
        for (number, one), other in zip(own.items(), shadow, strict=True):
            self._remember(request, number, Given(place, served.number, served.labels, _hash(one), _hash(other)))
        self._count(served, asked=len(own), differ=sum(map(str.__ne__, own.values(), shadow)))

    def note(self, served: Served, request: str, own: Mapping[int, str]) -> None:
        """Note what a version answered to the texts of a request, if its alias has a canary."""
        if served.split is None:
            return
        place = _find_place(served)
        with self._lock:
            self._canaries.setdefault(place, CanaryTally(*place, *served.split))
        for number, one in own.items():
            self._remember(request, number, Given(place, served.number, served.labels, _hash(one)))

    def find(self, request: str, number: int) -> Given | None:
        """Return what was answered to a text of a request; None if that is not known, or was judged."""
        with self._lock:
            return self._given.get((request, number))

    def judge(self, request: str, number: int, right: str) -> bool:
        """Note the right answer to a text of a request; return whether it is known, and was not judged before."""
        with self._lock:
            given = self._given.pop((request, number), None)
            return given is not None and self._judge(given, _hash(right))

    def judge_passed(self, told: PassedOn) -> None:
        """Note what another server was told, if this one gave that answer for that task."""
        place = (told.request, told.number)
        with self._lock:
            given = self._given.get(place)
            if given is not None and given.task == told.task:
                del self._given[place]
                self._judge(given, bytes.fromhex(told.right))

    def _judge(self, given: Given, right: bytes) -> bool:
        if given.shadow is None:
            return self._judge_canary(given, given.own == right)
        return self._judge_shadow(given, given.own == right, given.shadow == right)

    @property
    def waits(self) -> bool:
        """Whether the right answer to a text may still be told."""
        return bool(self._given)

    def _judge_shadow(self, given: Given, own: bool, shadow: bool) -> bool:
        tally = self._tallies.get(given.place)
        if tally is None:
            return False
        self._tallies[given.place] = tally._replace(
            judged=tally.judged + 1,
            first=tally.first + (own and not shadow),
            second=tally.second + (shadow and not own),
        )
        return True

    def _judge_canary(self, given: Given, right: bool) -> bool:
        """Count a judged answer, and the pair that it makes with the newest one of the other version.

        If both versions are equally good, the pair is as likely to have the one right answer on the one side as on the
        other, whatever their shares: a fair coin, as for a shadow. The newest one is taken, because texts change with
        time.
        """
        tally = self._canaries.get(given.place)
        if tally is None:
            return False
        if given.version == tally.canary:
            tally = tally._replace(canary_judged=tally.canary_judged + 1, canary_right=tally.canary_right + right)
        else:
            tally = tally._replace(judged=tally.judged + 1, right=tally.right + right)
        other = self._waiting.get(given.place)
        if other is None or other.version == given.version:
            self._waiting[given.place] = _Judged(given.version, right)
        else:
            del self._waiting[given.place]
            by_canary = given.version == tally.canary
            own, canary = (other.right, right) if by_canary else (right, other.right)
            tally = tally._replace(first=tally.first + (own and not canary), second=tally.second + (canary and not own))
        self._canaries[given.place] = tally
        return True

    def describe(self, place: Place) -> str | None:
        """Return what feedback and comparison say of a promotion's second version; None if nothing is known of one."""
        with self._lock:
            shadow, canary = self._tallies.get(place), self._canaries.get(place)
        return describe_shadow(shadow) if shadow else describe_canary(canary) if canary else None

    def list_canaries(self) -> list[CanaryTally]:
        """Return the tallies of canaries, by task and alias."""
        with self._lock:
            return sorted(self._canaries.values())

    def list(self) -> list[Tally]:
        """Return the tallies of shadows, by task and alias."""
        with self._lock:
            return sorted(self._tallies.values())

    def keep(self, promotions: Sequence[Place]) -> None:
        """Forget all tallies but those of these promotions (task, alias, seq), and write them to disk."""
        with self._lock:
            self._tallies = {place: self._tallies[place] for place in promotions if place in self._tallies}
            self._canaries = {place: self._canaries[place] for place in promotions if place in self._canaries}
            self._waiting = {place: self._waiting[place] for place in promotions if place in self._waiting}
            tallies, canaries = sorted(self._tallies.values()), tuple(sorted(self._canaries.values()))
        kept = _Kept(store=self._store, tallies=tallies, canaries=canaries)
        if not (kept.tallies or kept.canaries or self._path.exists()):
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, kept.model_dump_json().encode())
        except OSError as error:
            log.warning("%s: cannot be written (%s); a restart would begin the comparisons again", self._path, error)

    def _remember(self, request: str, number: int, given: Given) -> None:
        with self._lock:
            self._given[request, number] = given
            if len(self._given) > REMEMBERED:
                self._given.popitem(last=False)

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
            log.warning("%s; the comparisons begin again", error)
            return
        if kept.store == self._store:
            self._tallies = {(tally.task, tally.alias, tally.seq): tally for tally in kept.tallies}
            self._canaries = {(tally.task, tally.alias, tally.seq): tally for tally in kept.canaries}


def hash_feedback(request: str, number: int, task: str, right: str) -> PassedOn:
    """Return what another server is told of its answer: the hash of the right one."""
    return PassedOn(request, number, task, _hash(right).hex())


def _hash(answer: str) -> bytes:
    return hashlib.sha256(answer.encode()).digest()[:16]


def _find_place(served: Served) -> Place:
    return served.task, served.alias, served.seq
