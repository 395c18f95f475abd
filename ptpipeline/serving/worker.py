"""The thread that computes: rows of many tasks as mixed batches, and between two batches a token of each open text."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Condition, Thread

from torch import Tensor

from ptpipeline.errors import ArtifactError, Overloaded, PtpError, place_of
from ptpipeline.serving.answerer import Sampling
from ptpipeline.serving.decoding import Decoder
from ptpipeline.serving.engine import Engine
from ptpipeline.serving.queues import FairQueue, Row
from ptpipeline.serving.ranking import choose_pass_tokens, name_probabilities

LINGER = 0.002  # seconds that the first row of an idle server waits for company
SHARE = 4  # part of a pass that a batch has while texts are being generated, which wait for it

log = logging.getLogger(__name__)


class Worker:
    """Computes what rows ask for, and jobs that need the engine to themselves. It alone asks the engine."""

    def __init__(self, engine: Engine) -> None:
        self.batches = self.texts = 0  # so far
        self.rate = 10.0  # texts that it answers in a second
        self._engine, self._decoder = engine, Decoder(engine.base)
        self._tokens = choose_pass_tokens(engine.base)
        self._change = Condition()  # guards all that follows
        self._queries, self._openings = FairQueue(), FairQueue()
        self._streams = dict[int, Row]()  # rows that the decoder has, by its handles
        self._now = set[str]()  # versions of the rows that are being computed
        self._left = set[Row]()  # rows whose clients left after they were taken, perhaps
        self._jobs = deque[tuple[Callable[[], None], Future[None]]]()
        self._closed = False
        engine.caches.is_wanted = self._is_wanted
        self._thread = Thread(target=self._run, name="ptp-worker", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still computes."""
        return self._thread.is_alive()

    @property
    def generating(self) -> int:
        """Number of texts that are being generated."""
        return len(self._streams)

    def add(self, rows: Sequence[Row]) -> None:
        """Let rows wait for their turn. Raises Overloaded if the thread has ended."""
        with self._change:
            self._check_open()
            for row in rows:
                self._find_queue(row).add(row)
            self._change.notify()

    def remove(self, rows: Sequence[Row]) -> None:
        """Take rows out whose answers nobody waits for any more, or that have been answered."""
        with self._change:
            for row in rows:
                self._find_queue(row).remove(row)
            self._left.update(row for row in rows if row.sampling is not None)
            self._change.notify()

    def submit(self, job: Callable[[], None]) -> Future[None]:
        """Run a job before the next batch; the future tells how it ended."""
        done = Future[None]()
        with self._change:
            if self._closed:
                done.set_exception(_refusal())
            else:
                self._jobs.append((job, done))
            self._change.notify()
        return done

    def close(self) -> None:
        """End the thread behind its batch; rows that still wait are refused."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _check_open(self) -> None:
        if self._closed:
            raise _refusal()

    def _find_queue(self, row: Row) -> FairQueue:
        return self._queries if row.sampling is None else self._openings

    def _run(self) -> None:
        try:
            while self._wait():
                self._work()
                rows = self._take(self._queries)
                self._now = {row.text.digest for row in rows}
                self._prepare(rows)
                self._answer(rows)
                self._generate()
        except Exception as error:  # noqa: BLE001, whoever asks is told that nothing computes, and this is why
            log.error("nothing is computed any more: %s", place_of(error))
        finally:
            self._refuse()

    def _wait(self) -> bool:
        """Wait until there is something to do, and a little longer for company; return False if all is to end."""
        idle = False
        with self._change:
            while not (self._closed or self._has_work()):
                idle = True
                self._change.wait()
        if idle:
            time.sleep(LINGER)
        return not self._closed

    def _has_work(self) -> bool:
        return any((self._queries, self._openings, self._streams, self._left, self._jobs))

    def _refuse(self) -> None:
        """Refuse all that waits, and all that comes: nobody computes any more."""
        with self._change:
            self._closed = True
            rows = [*self._streams.values(), *self._queries.clear(), *self._openings.clear()]
            jobs = list(self._jobs)
        for row in rows:
            _deliver(row, _refusal())
        for _, done in jobs:
            done.set_exception(_refusal())

    def _work(self) -> None:
        with self._change:
            jobs = list(self._jobs)
            self._jobs.clear()
        for job, done in jobs:
            try:
                job()
            except Exception as error:  # noqa: BLE001, it is raised where somebody waits for it
                done.set_exception(error)
            else:
                done.set_result(None)

    def _take(self, queue: FairQueue) -> list[Row]:
        """Take the rows of the next batch."""
        tokens = self._tokens // SHARE if self._streams else self._tokens
        with self._change:
            return queue.take(tokens, self._is_near)

    def _take_openings(self) -> list[Row]:
        """Take texts that begin with the next step, in turn over the tasks: no more than it reads and has room for.

        Those that stand in the decoder are served as they came: a task with many there would hold up all others.
        """
        rows, tokens, free = list[Row](), self._decoder.read_tokens, self._decoder.free
        with self._change:
            while self._openings and tokens > 0 and free > 0 and self._decoder.waiting < 2:
                taken = self._openings.take(1, self._is_near)  # one row, however long
                rows += taken
                tokens -= sum(row.length for row in taken)
                free -= sum(self._count_slots(row) for row in taken)
        return rows

    def _count_slots(self, row: Row) -> int:
        """Return how many tokens a text to be generated holds in the end."""
        digest, sampling = row.text.digest, row.sampling or Sampling()
        limit = self._engine.find_limit(digest) if sampling.max_tokens is None else sampling.max_tokens
        return self._engine.find(digest).slots + row.length + limit

    def _is_wanted(self, digest: str) -> bool:
        return digest in self._now or self._queries.holds(digest) or self._openings.holds(digest)

    def _is_near(self, row: Row) -> bool:
        return row.text.digest in self._engine.caches

    def _prepare(self, rows: Sequence[Row]) -> None:
        """Compute prefix caches that the rows lack, and with them some that the next rows will: few tokens by
        themselves take as long as many.
        """
        if all(self._is_near(row) for row in rows):
            return
        with self._change:
            coming = self._queries.foresee(self._engine.caches.ahead)
        slots, digests = 0, dict[str, None]()
        for row in (*rows, *coming):
            own = self._engine.find(row.text.digest).slots
            if not self._is_near(row) and slots + own <= self._tokens:
                slots += 0 if row.text.digest in digests else own
                digests[row.text.digest] = None
        if coming:
            with suppress(Exception):  # it is raised again for the row that it belongs to
                self._engine.find_caches(list(digests))

    def _answer(self, rows: Sequence[Row]) -> None:
        """Score a batch; if that fails, its halves, so that a row which cannot be answered fails alone."""
        if not rows:
            return
        started = time.monotonic()
        try:
            scores = self._engine.score([row.text for row in rows])
        except Exception as error:  # noqa: BLE001, the thread answers others
            scores = []
            if len(rows) == 1:
                _deliver(rows[0], _explain(error, rows[0]))
                return
        if not scores:  # behind the error, which holds the memory of what failed
            middle = len(rows) // 2
            self._answer(rows[:middle])
            self._answer(rows[middle:])
            return
        with self._change:
            self.batches += 1
            self.texts += len(rows)
            self.rate += 0.1 * (len(rows) / (time.monotonic() - started) - self.rate)
        for row, own in zip(rows, scores, strict=True):
            _deliver(row, self._name_labels(row, own))

    def _name_labels(self, row: Row, scores: Tensor) -> dict[str, float] | PtpError:
        """Return the probability of each label, most likely first."""
        names = self._engine.find_labels(row.text.digest).names
        try:
            named = name_probabilities(f"{row.task} {row.text.digest[:12]}", names, scores)
        except ArtifactError as error:
            return error
        return dict(sorted(named.items(), key=lambda pair: -pair[1]))

    def _generate(self) -> None:
        """Let those leave whose clients did, let others join if there is room, and give every row a token."""
        with self._change:
            left, self._left = self._left, set()
        try:
            for handle in [handle for handle, row in self._streams.items() if row in left]:
                del self._streams[handle]
                self._decoder.leave(handle)
        except Exception as error:  # noqa: BLE001, the thread answers others
            self._end_streams(error)
        if rows := self._take_openings():
            with suppress(Exception):  # it is raised again for the row that it belongs to
                self._engine.find_caches(sorted({row.text.digest for row in rows}))
            for row in rows:
                self._join(row)
        if not self._streams:
            return
        try:
            emitted = self._decoder.step()
        except Exception as error:  # noqa: BLE001, the thread answers others
            self._end_streams(error)
            return
        for handle, outcome in emitted:
            row = self._streams[handle]
            if isinstance(outcome, Exception) or outcome.finish:
                del self._streams[handle]
            _deliver(row, _explain(outcome, row) if isinstance(outcome, Exception) else outcome)

    def _end_streams(self, error: Exception) -> None:
        """End all texts that are being generated by an error, and begin with nothing."""
        for row in self._streams.values():
            _deliver(row, _explain(error, row))
        self._streams.clear()
        self._decoder = Decoder(self._engine.base)

    def _join(self, row: Row) -> None:
        digest, sampling = row.text.digest, row.sampling or Sampling()
        try:
            cache, limit = self._engine.find_cache(digest), self._engine.find_limit(digest)
            self._streams[self._decoder.join(cache, row.text.ids, sampling, limit)] = row
        except Exception as error:  # noqa: BLE001, the thread answers others
            _deliver(row, _explain(error, row))


def _refusal() -> Overloaded:
    return Overloaded("this server has ended; ask another one", 0.5)


def _deliver(row: Row, outcome: object) -> None:
    with suppress(RuntimeError):  # the event loop of its client has ended
        row.deliver(outcome)


def _explain(error: Exception, row: Row) -> PtpError:
    """Return the error that a client is told; one that is not ours may hold a text, so its message stays here."""
    if isinstance(error, PtpError):
        return error
    where = place_of(error)
    log.error("%s %s: %s", row.task, row.text.digest[:12], where)
    return PtpError(f"{row.task} {row.text.digest[:12]}: {where}")
