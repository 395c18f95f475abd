"""What a server answers with now: it follows the pointers of the store, and refuses what does not hold.

A new version is read, verified and computed beside the old one; then the alias moves to it in one step. Whatever fails
before that is told, and changes nothing. Old versions stay as long as a request may still run on them.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ptpipeline.errors import ArtifactError, NotFound, PtpError, ServiceUnavailable, SettingsError, place_of
from ptpipeline.records.base import is_name
from ptpipeline.records.serving import Holding, Observed
from ptpipeline.records.versions import Promotion
from ptpipeline.serving.holdings import SHA, Held, Holder, Holdings, list_holdings
from ptpipeline.serving.last_good import LastGood, own_folder
from ptpipeline.serving.pointers import Pointers
from ptpipeline.serving.refusals import Place, Refusals
from ptpipeline.serving.relay import Relay
from ptpipeline.serving.resolver import read_name, read_promotion, split_reference
from ptpipeline.serving.seen import Memory
from ptpipeline.serving.served import Alias, Served, State, put_beside
from ptpipeline.serving.servers import report_holdings, unfit_name
from ptpipeline.serving.trials import Trials
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import is_server_name

EVERY = 2.0  # seconds between two looks at the store, unless a server is started with others
REPORT = 60.0  # seconds after which the server reports again although nothing changed: it is alive
FIRST_LOOK = 5.0  # seconds that a start waits for the store, if the last good set is held already
STOP = 5.0  # seconds that an end waits for a look at the store
MISSED = 10_000  # names without a pointer that are remembered until the next look
_VERSION = re.compile(f"[0-9]+$|{SHA}")

log = logging.getLogger(__name__)


def choose_pause(every: float, took: float) -> float:
    """Return the seconds until the next look at the store, after one that took so long.

    Looks begin `every` seconds apart. One that takes long, with many pointers, leaves at least as much time to requests
    as it took; one that waited for a store that hung is followed by the next one within twice `every`.
    """
    return min(max(every - took, took), 2 * every)


class Live:
    """The versions that a server answers with. `start` follows the store in a thread; any thread may call `find`."""

    def __init__(
        self,
        store: ObjectStore,
        holder: Holder,
        home: Path,
        *,
        server: str = "",
        tasks: Collection[str] = (),
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """home: below it are the promotions that this machine's readers have seen, and of each server for itself the
        last good set and the trials. server: the name under which this one reports what it holds; it reports nothing
        without one. tasks: those to serve; none is all of the store. every: seconds between two looks at the store.
        clock: seconds.

        Raises SettingsError for a server's name that cannot be part of a key.
        """
        if server and not is_server_name(server):
            raise unfit_name(server)
        self.store, self.server, self.every, self.clock = store, server, every, clock
        self._memory, own = Memory(home), own_folder(home, server)
        self.tasks = frozenset(tasks)
        self.trials, self.relay = Trials(own, store.where), Relay(clock)
        self._good = LastGood(own, store.where)
        self._holdings = Holdings(holder, self._good, clock)
        self._aliases: dict[Place, Alias] = {}
        self._refused = Refusals(clock)
        self._pointers = Pointers(store, self.tasks, clock)
        self._missed: dict[Place, float] = {}
        self._reading: set[Holding] = set()
        self._reached: float | None = None
        self._trouble = ""
        self._reported: tuple[object, float] = (None, 0.0)
        self._changing, self._reporting = threading.RLock(), threading.Lock()
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
        if (served := self.peek(reference, key)) is not None:
            return served
        task, name = self._split(reference)
        if _VERSION.match(name):
            return self._load_version(task, name)
        return self._choose(self._load_alias(Place(task, name)), key)

    def peek(self, reference: str, key: str = "") -> Served | None:
        """Return what `find` returns if it is held, else None. This waits for nothing. Raises NotFound for no name."""
        task, name = self._split(reference)
        if _VERSION.match(name):
            held = self._holdings.find(task, name)
            return None if held is None else Served.of(held)
        alias = self._aliases.get(Place(task, name))
        return None if alias is None else self._choose(alias, key)

    def _split(self, reference: str) -> tuple[str, str]:
        """Return task and alias, number, or `sha256:` and digest; NotFound if it is none, or of another task."""
        task, _, name = reference.partition("@")
        if not (name.startswith(SHA) and is_name(task)):
            task, name = split_reference(reference)
        if self.tasks and task not in self.tasks:
            raise NotFound(f"{task}: this server does not serve it; it was started for other tasks")
        return task, name

    def _choose(self, alias: Alias, key: str) -> Served:
        served = alias.choose(key)
        self._holdings.use(served.digest)
        return served

    def observe(self) -> State:
        """Return what this server answers with, for people and metrics."""
        return State(
            promotions=[alias.promotion for _, alias in sorted(self._aliases.copy().items())],
            refused=self._refused.list(),
            held=len(self._holdings),
            away=None if self._reached is None else self.clock() - self._reached,
            trouble=self._trouble,
        )

    @property
    def ready(self) -> bool:
        """Whether requests can be answered: the store was looked at once, or a last good set is held."""
        return self._looked.is_set() and (self._reached is not None or bool(self._aliases))

    def _load_version(self, task: str, name: str) -> Served:
        """Load a version that is not held, by its number, or by `sha256:` and its digest."""
        self._check_reachable()
        with self._changing:
            return Served.of(self._holdings.find(task, name) or self._load(task, name))

    def _load(self, task: str, name: str) -> Held:
        digest = name.removeprefix(SHA)
        number = None if name.startswith(SHA) else int(name)
        if number is not None:
            digest = read_name(self.store, task, number).digest
        self._holdings.make_room(self._list_named())
        with self._announced([Holding(task, digest)]):
            return self._holdings.hold(self.store, task, digest, number)

    def _load_alias(self, place: Place) -> Alias:
        """Take over an alias that was not known when the aliases were listed."""
        self._check_reachable()
        until = self._missed.get(place, 0.0)
        if self.clock() < until:
            raise NotFound(f"{place.task} has no {place.alias} version in {self.store.url}")
        with self._changing:
            if place in self._aliases:
                return self._aliases[place]
            if self._refused.find(place) is None:
                promotion = self._read_missing(place)
                with self._announced(list_holdings([promotion])), self._refused.trying(place, ""):
                    self._adopt(self.store, promotion, "")  # the next look learns the pointer's tag
                    self._pointers.known.add(place)
            if place not in self._aliases:
                raise ArtifactError(f"{place.task}@{place.alias}: refused: {self._refused.find(place)}")
            return self._aliases[place]

    def _read_missing(self, place: Place) -> Promotion:
        """Read the pointer of an alias that was not known; remember until the next look if there is none."""
        try:
            return read_promotion(self.store, *place, self._memory)
        except NotFound:
            if len(self._missed) >= MISSED:
                self._missed.clear()
            self._missed[place] = self.clock() + self.every
            raise

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
            self._thread.join(STOP)
        waits = self._thread is not None and self._thread.is_alive()  # for a store that does not answer
        if self._reported[0] is not None and not (waits or self._trouble):
            try:
                report_holdings(self.store, self.server, [], passed=self.relay.list())
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
            self._stopped.wait(choose_pause(self.every, time.monotonic() - began))

    def hold_last_good(self) -> None:
        """Hold what this server answered with when it ended; what was damaged since is told and left out."""
        for task, alias, promotion in self._good.read():
            place = Place(task, alias)
            if self.tasks and task not in self.tasks:
                continue
            with self._refused.trying(place, ""):
                if isinstance(promotion, PtpError):
                    raise promotion
                self._adopt(self._good.store, promotion, "")

    def poll(self) -> None:
        """Look at the store once, and take over what changed."""
        with self._changing:
            self._good.catch_up()
        try:
            if self._pointers.discover():
                self._forget_gone()
            tags = self._pointers.look({place: alias.etag for place, alias in self._aliases.copy().items()})
            if self._reached is None and self._aliases and not (self._pointers.known or any(tags.values())):
                raise SettingsError(f"{self.store.url}: none of this server's aliases is there; is its disk mounted?")
            self._reached, self._trouble = self.clock(), ""
            due = {place: self._aliases.get(place) for place, etag in tags.items() if self._is_due(place, etag)}
            read = dict[Place, Promotion]()
            for place in due:
                with self._refused.trying(place, tags[place]):
                    read[place] = read_promotion(self.store, *place, self._memory)
            self.relay.resume(self.store, self.server)
            with self._announced(list_holdings(read.values())):
                for place, promotion in read.items():
                    with self._refused.trying(place, tags[place]), self._changing:
                        if self._aliases.get(place) is due[place]:  # else a request loaded it since, and read it later
                            self._adopt(self.store, promotion, tags[place] or "")
            self.relay.listen(self.store, self.server, self.trials)
        except (ServiceUnavailable, SettingsError) as error:
            if not self._trouble:
                log.warning("%s; this server goes on with the versions that it has", error)
            self._trouble = str(error)
            return
        with self._changing:
            self._holdings.prune(self._list_named())
        self._report()

    # ---------------------------------------------------------------- pointers

    def _forget_gone(self) -> None:
        """Forget the refusals of aliases whose pointer is gone, if nothing answers by it."""
        for refused in self._refused.list():
            place = Place(refused.task, refused.alias)
            if place not in self._pointers.known and place not in self._aliases:
                self._refused.forget(place)

    def _is_due(self, place: Place, etag: str | None) -> bool:
        """Whether the pointer has to be read: it shows something new, and no refusal of it is fresh."""
        alias = self._aliases.get(place)
        if alias is not None and alias.etag == etag:
            self._refused.forget(place)  # it shows again what this server answers by
            return False
        if alias is None and etag is None:
            self._pointers.known.discard(place)
            self._refused.forget(place)
            return False
        return not self._refused.stands(place, etag)

    def _adopt(self, source: ObjectStore, promotion: Promotion, etag: str) -> None:
        """Hold what the promotion names, then let its alias answer by it, in one step."""
        place, beside = Place(promotion.task, promotion.alias), promotion.beside
        held = self._holdings.hold(source, place.task, promotion.digest, promotion.version)
        first, second = Served.of(held, place.alias, promotion.seq), None
        if beside:
            held = self._holdings.hold(source, place.task, beside.digest, beside.version)
            first, second = put_beside(first, Served.of(held, place.alias, promotion.seq), promotion)
        old = self._aliases.get(place)
        before = old.before if old else frozenset()
        if old and old.first.digest != first.digest:
            before = old.named
        for digest in old.named if old else ():
            self._holdings.use(digest)  # requests that were given it may still run
        if source is self.store:  # before anybody is answered by it: who was must not meet the one before after a kill
            self._good.save_promotion(promotion)
        self._aliases[place] = Alias(promotion, etag, first, second, before)
        self._refused.forget(place)
        log.info("%s@%s answers with version %d (promotion %d)", *place, promotion.version, promotion.seq)

    def _list_named(self) -> set[str]:
        """Return the digests that aliases name, or named before."""
        return {digest for alias in self._aliases.values() for digest in alias.named | alias.before}

    # ---------------------------------------------------------------- reports

    @contextmanager
    def _announced(self, holdings: Collection[Holding]) -> Iterator[None]:
        """Report these prompts as held before the block reads them, so that nobody deletes them meanwhile."""
        self._reading.update(holdings)
        self._report()
        try:
            yield
        finally:
            self._reading.difference_update(holdings)

    def _report(self) -> None:
        """Tell the store what this server holds and answers by, if that changed or a minute passed."""
        if self.server:
            with self._reporting:  # else an older report might come after one that announces what is being read
                self._write_report()

    def _write_report(self) -> None:
        promotions = [alias.promotion for alias in self._aliases.copy().values()]
        holds = sorted({*self._holdings.list(), *self._reading.copy()})
        observed = sorted(Observed(row.task, row.alias, row.seq, row.version) for row in promotions)
        passed = self.relay.list()
        told = (holds, observed, self._refused.list(), passed)
        if told == self._reported[0] and self.clock() - self._reported[1] < REPORT:
            return
        self.trials.keep([(row.task, row.alias, row.seq) for row in promotions if row.beside])
        try:
            report_holdings(self.store, self.server, *told[:3], self.trials.list(), self.trials.list_canaries(), passed)
            self.relay.mark(passed)
        except PtpError as error:  # the pointers keep what they name from being deleted too
            log.warning("the store was not told what this server holds: %s", error)
        self._reported = (told, self.clock())  # what the store did not take is told again in a minute, or if it changes
