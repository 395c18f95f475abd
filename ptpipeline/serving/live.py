"""What a server answers with now: it follows the pointers of the store, and refuses what does not hold.

A new version is read, verified and computed beside the old one; then the alias moves to it in one step. Whatever fails
before that is told, and changes nothing. Old versions stay as long as a request may still run on them.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ptpipeline.errors import NotFound, PtpError, ServiceUnavailable, SettingsError, Terminal, place_of
from ptpipeline.records.answers import Holding, Observed, Refused
from ptpipeline.records.versions import Promotion
from ptpipeline.serving.holdings import SHA, Held, Holder, Holdings
from ptpipeline.serving.last_good import LastGood
from ptpipeline.serving.memory import Memory
from ptpipeline.serving.resolver import read_name, read_promotion, split_reference
from ptpipeline.serving.served import Alias, Served, State
from ptpipeline.serving.servers import report_holdings
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.addresses import AliasPointer, parse
from ptpipeline.storage.keys import PROMPTS, aliases_prefix, pointer_key
from ptpipeline.storage.signed import without_checks

EVERY = 2.0  # seconds between two looks at the pointers
DISCOVER = 60.0  # seconds between two lists of all aliases; one that is asked for is looked up at once
REPORT = 60.0  # seconds after which the server reports again although nothing changed: it is alive
RETRY = 300.0  # seconds at most until a refused promotion is tried again: somebody may have mended its bytes
FIRST_LOOK = 10.0  # seconds that a start waits for the store, if the last good set is loaded already
READERS = 8  # pointers that are read at the same time
MISSED = 10_000  # names without a pointer that are remembered until the next look

log = logging.getLogger(__name__)


class _Place(NamedTuple):
    task: str
    alias: str


class _Refusal(NamedTuple):
    """Why a promotion was not taken, how often it was tried, and when it is tried again."""

    reason: str
    tries: int
    again: float


class Live:
    """The versions that a server answers with. `start` follows the store in a thread; any thread may call `find`."""

    def __init__(
        self,
        store: ObjectStore,
        holder: Holder,
        memory: Memory,
        home: Path,
        *,
        server: str = "",
        tasks: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """home: below it the last good set is kept. server: the name under which this server reports what it holds; it
        reports nothing without one. tasks: those to serve; none is all of the store. clock: seconds.
        """
        self.store, self.memory, self.server, self.clock = store, memory, server, clock
        self.tasks = frozenset(tasks)
        self._good = LastGood(home, store.url)
        self._holdings = Holdings(holder, self._good, clock)
        self._aliases: dict[_Place, Alias] = {}
        self._refused: dict[_Place, _Refusal] = {}
        self._known: set[_Place] = set()
        self._missed: dict[_Place, float] = {}
        self._listed: float | None = None
        self._reached: float | None = None
        self._trouble = ""
        self._reported: tuple[object, float] = (None, 0.0)
        self._changing = threading.RLock()
        self._stopped, self._looked = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    # ---------------------------------------------------------------- what requests ask

    def find(self, reference: str, key: str = "") -> Served:
        """Return the version that answers `TASK`, `TASK@ALIAS`, `TASK@NUMBER` or `TASK@sha256:DIGEST`.

        key: requests of one key get one version while an alias is split between two. A version that is not held yet is
        read from the store and computed before this returns, so call it in a thread.

        Raises NotFound; ServiceUnavailable if the version is not held and the store is away; Overloaded if too many are
        held by number or digest; and what the prompt is refused for.
        """
        task, at, name = reference.partition("@")
        by_digest = at and name.startswith(SHA)
        if not by_digest:
            task, name = split_reference(reference)
        if self.tasks and task not in self.tasks:
            raise NotFound(f"{task}: this server does not serve it; it was started for other tasks")
        if by_digest or re.fullmatch("[0-9]+", name):
            return self._find_version(task, name)
        alias = self._aliases.get(_Place(task, name)) or self._meet(_Place(task, name))
        served = alias.choose(key)
        self._holdings.use(served.digest)
        return served

    def observe(self) -> State:
        """Return what this server answers with, for people and metrics."""
        return State(
            promotions=[alias.promotion for _, alias in sorted(self._aliases.copy().items())],
            refused=self._list_refused(),
            held=len(self._holdings),
            away=None if self._reached is None else self.clock() - self._reached,
            trouble=self._trouble,
        )

    @property
    def ready(self) -> bool:
        """Whether requests can be answered: the store was looked at once, or a last good set is held."""
        return self._looked.is_set() and (self._reached is not None or bool(self._aliases))

    def _find_version(self, task: str, name: str) -> Served:
        """Return a version by its number, or by `sha256:` and its digest."""
        held = self._holdings.find(task, name)
        if held is None:
            self._check_reachable()
            with self._changing:
                held = self._holdings.find(task, name) or self._load(task, name)
        return Served.of(held)

    def _load(self, task: str, name: str) -> Held:
        digest = name.removeprefix(SHA)
        number = None if name.startswith(SHA) else int(name)
        if number is not None:
            digest = read_name(self.store, task, number).digest
        self._holdings.make_room(self._list_named())
        self._report([Holding(task, digest)])
        return self._holdings.hold(self.store, task, digest, number)

    def _meet(self, place: _Place) -> Alias:
        """Take over an alias that was not known when the aliases were listed."""
        self._check_reachable()
        until = self._missed.get(place, 0.0)
        if self.clock() < until:
            raise NotFound(f"{place.task} has no {place.alias} version in {self.store.url}")
        with self._changing:
            if place not in self._aliases:
                refusal = self._refused.get(place)
                if refusal and self.clock() < refusal.again:
                    raise Terminal(f"{place.task}@{place.alias} is refused: {refusal.reason}")
                try:
                    promotion = read_promotion(self.store, *place, self.memory)
                except NotFound:
                    if len(self._missed) >= MISSED:
                        self._missed.clear()
                    self._missed[place] = self.clock() + EVERY
                    raise
                self._report(_list_holdings([promotion]))
                self._adopt(self.store, promotion, "")  # the next look learns the pointer's tag
                self._known.add(place)
            return self._aliases[place]

    def _check_reachable(self) -> None:
        """Raise ServiceUnavailable if the last look found the store away: a request waits for no time-out."""
        if self._trouble:
            raise ServiceUnavailable(f"this version is not held, and the store is away: {self._trouble}")

    # ---------------------------------------------------------------- the thread

    def start(self) -> None:
        """Hold the last good set, look at the store, and go on looking in a thread until `stop`."""
        self.hold_last_good()
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._thread.start()
        self._looked.wait(FIRST_LOOK if self._aliases else None)
        self._looked.set()

    def stop(self) -> None:
        """End the thread, and report that this server holds nothing any more."""
        self._stopped.set()
        if self._thread:
            self._thread.join()
        if self._reported[0] is not None:
            try:
                report_holdings(self.store, self.server, [])
            except PtpError as error:
                log.warning("the store was not told that this server ended: %s", error)

    def _run(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                self.poll()
            except Exception as error:  # noqa: BLE001 - the thread that follows the store outlives every fault
                log.error("the look at the store failed: %s", place_of(error))
            self._looked.set()
            self._stopped.wait(max(EVERY, time.monotonic() - began))  # at most half of the time is spent on looking

    def hold_last_good(self) -> None:
        """Hold what this server answered with when it ended; what was damaged since is told and left out."""
        for task, alias, promotion in self._good.read():
            place = _Place(task, alias)
            if self.tasks and task not in self.tasks:
                continue
            with self._refusing(place):
                if isinstance(promotion, PtpError):
                    raise promotion
                self._adopt(self._good.store, promotion, "")

    def poll(self) -> None:
        """Look at every pointer once, and take over what changed."""
        try:
            self._list_aliases()
            tags = self._read_tags()
            self._reached, self._trouble = self.clock(), ""
            read = []
            for place, etag in tags.items():
                if self._is_due(place, etag):
                    with self._refusing(place):
                        read.append((read_promotion(self.store, *place, self.memory), etag or ""))
            self._report(_list_holdings(promotion for promotion, _ in read))
            for promotion, etag in read:
                with self._refusing(_Place(promotion.task, promotion.alias)), self._changing:
                    self._adopt(self.store, promotion, etag)
        except (ServiceUnavailable, SettingsError) as error:
            if not self._trouble:
                log.warning("%s; this server goes on with the versions that it has", error)
            self._trouble = str(error)
            return
        with self._changing:
            self._holdings.prune(self._list_named())
        self._report()

    # ---------------------------------------------------------------- pointers

    def _list_aliases(self) -> None:
        """List the aliases of the store once a minute."""
        if self._listed is not None and self.clock() - self._listed < DISCOVER:
            return
        folders = [aliases_prefix(task) for task in sorted(self.tasks)] or [PROMPTS]
        found = [parse(key) for folder in folders for key in self.store.keys(folder)]
        self._known = {_Place(at.task, at.alias) for at in found if isinstance(at, AliasPointer)}
        self._listed = self.clock()

    def _read_tags(self) -> dict[_Place, str | None]:
        """Return the tag of the bytes of each alias's pointer; None if there are none."""
        bare = without_checks(self.store)  # a pointer that changed is read again, with its signature

        def read(place: _Place) -> str | None:
            try:
                return bare.read(pointer_key(*place)).etag
            except NotFound:
                return None
            except SettingsError:
                raise
            except Terminal:  # too large, or a link: it is refused when it is read again
                return "unreadable"

        places = sorted(self._known | self._aliases.keys())
        with ThreadPoolExecutor(READERS) as pool:
            return dict(zip(places, pool.map(read, places), strict=True))

    def _is_due(self, place: _Place, etag: str | None) -> bool:
        """Whether the pointer has to be read: it shows something new, and no refusal of it is fresh."""
        alias, refusal = self._aliases.get(place), self._refused.get(place)
        if alias is not None and alias.etag == etag:
            self._refused.pop(place, None)  # it shows again what this server answers by
            return False
        if alias is None and etag is None:
            self._known.discard(place)
            return False
        return refusal is None or self.clock() >= refusal.again

    def _adopt(self, source: ObjectStore, promotion: Promotion, etag: str) -> None:
        """Hold what the promotion names, then let its alias answer by it, in one step."""
        place, beside = _Place(promotion.task, promotion.alias), promotion.beside
        held = self._holdings.hold(source, place.task, promotion.digest, promotion.version)
        first, second = Served.of(held, place.alias), None
        if beside:
            second = Served.of(self._holdings.hold(source, place.task, beside.digest, beside.version), place.alias)
            first = first._replace(shadow=second) if beside.is_shadow else first
        old = self._aliases.get(place)
        before = old.before if old else frozenset()
        if old and old.first.digest != first.digest:
            before = old.named
        for digest in old.named if old else ():
            self._holdings.use(digest)  # requests that were given it may still run
        self._aliases[place] = Alias(promotion, etag, first, second, before)
        if source is self.store:
            self._good.save_promotion(promotion)
        log.info("%s@%s answers with version %d (promotion %d)", *place, promotion.version, promotion.seq)

    def _list_named(self) -> set[str]:
        """Return the digests that aliases name, or named before."""
        return {digest for alias in self._aliases.values() for digest in alias.named | alias.before}

    @contextmanager
    def _refusing(self, place: _Place) -> Iterator[None]:
        """Note why a promotion is not taken, and when to try it again; what was there before stays."""
        try:
            yield
        except ServiceUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a prompt does to the model, the others are served
            reason = str(error) if isinstance(error, PtpError) else place_of(error)
            before = self._refused.get(place)
            if before is None or before.reason != reason:
                log.error("%s@%s: refused: %s", *place, reason)
            tries = before.tries + 1 if before else 1
            self._refused[place] = _Refusal(reason, tries, self.clock() + min(RETRY, EVERY * 2.0**tries))
        else:
            self._refused.pop(place, None)

    # ---------------------------------------------------------------- reports

    def _list_refused(self) -> list[Refused]:
        return [Refused(*place, refusal.reason) for place, refusal in sorted(self._refused.copy().items())]

    def _report(self, further: Iterable[Holding] = ()) -> None:
        """Tell the store what this server holds and answers by, if that changed or a minute passed.

        further: what it is about to read, so that nobody deletes it meanwhile.
        """
        if not self.server:
            return
        promotions = [alias.promotion for alias in self._aliases.values()]
        holds = sorted({*self._holdings.list(), *further})
        observed = sorted(Observed(row.task, row.alias, row.seq, row.version) for row in promotions)
        told = (holds, observed, self._list_refused())
        if told == self._reported[0] and self.clock() - self._reported[1] < REPORT:
            return
        try:
            report_holdings(self.store, self.server, *told)
        except PtpError as error:  # the pointers keep what they name from being deleted too
            log.warning("the store was not told what this server holds: %s", error)
        else:
            self._reported = (told, self.clock())


def _list_holdings(promotions: Iterable[Promotion]) -> list[Holding]:
    """Return the prompts that the promotions name."""
    return [
        Holding(row.task, digest)
        for row in promotions
        for digest in (row.digest, *([row.beside.digest] if row.beside else []))
    ]
