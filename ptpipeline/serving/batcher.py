"""Requests of many clients and tasks as mixed batches on one engine: one thread computes, an event loop waits.

Between two batches of texts to classify, every text that is being generated gets one more token.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Condition, Thread
from typing import NamedTuple

from torch import Tensor

from ptpipeline.errors import ArtifactError, DataError, NotFound, Overloaded, PtpError, TimedOut, place_of
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.decoding import Decoder
from ptpipeline.serving.engine import Engine, LoadedPrompt, Question, Rendered
from ptpipeline.serving.queues import FairQueue, Row
from ptpipeline.serving.ranking import choose_pass_tokens
from ptpipeline.serving.service import Piece, Sampling
from ptpipeline.task.template import Fields

WAITING = 4096  # texts that wait for an answer at once
LINGER = 0.002  # seconds that the first request of an idle server waits for company
RENDERED = 16  # texts that become tokens before another request's may
SLOWEST, FASTEST = 60.0, 0.5  # seconds after which another try may be worth it

log = logging.getLogger(__name__)


class Load(NamedTuple):
    """What a batcher does and has done: texts that wait or run, texts that are being generated, batches and their texts
    so far, bytes of prefix caches, how often one was in memory and how often not, and whether it still computes.
    """

    waiting: int
    generating: int
    batches: int
    texts: int
    cache_bytes: int
    cache_hits: int
    cache_misses: int
    alive: bool


class _Request:
    """Texts that were asked together, and what they came to so far; a `future` holds all of it in the end."""

    def __init__(self, count: int) -> None:
        self.future = Future[list[dict[str, float] | PtpError]]()
        self._outcomes: list[dict[str, float] | PtpError] = [{}] * count
        self._left = count

    def set(self, place: int, outcome: dict[str, float] | PtpError) -> None:
        """Note what a text came to."""
        self._outcomes[place] = outcome
        self._left -= 1
        if not self._left:
            with suppress(InvalidStateError):  # nobody waits for it any more
                self.future.set_result(self._outcomes)


class Batcher:
    """Answers texts with the prompts that it holds (see `service.Answerer`). One thread of its own computes.

    A task may have as many texts waiting as there is room left for other tasks' (Choudhury & Hahne 1998): so no task
    can fill the queue, and one alone may take half of it.
    """

    def __init__(self, engine: Engine, waiting: int = WAITING) -> None:
        self._engine = engine
        self._bound = waiting
        self._tokens = choose_pass_tokens(engine.base)
        self._decoder = Decoder(engine.base)
        self._change = Condition()  # guards all that follows
        self._queries, self._openings = FairQueue(), FairQueue()
        self._streams = dict[int, Row]()  # rows that the decoder has, by its handles
        self._left = deque[Row]()  # rows whose clients left while they were generated
        self._probes = deque[tuple[str, Future[None]]]()
        self._held, self._ended = set[str](), set[str]()  # digests that may be asked; that may have to be unloaded
        self._users, self._tasks = Counter[str](), Counter[str]()  # calls by digest, texts by task
        self._batches = self._texts = 0
        self._rate = 10.0  # texts per second
        self._draining = self._closed = False
        self._reader = ThreadPoolExecutor(1, "ptp-reader")  # texts become tokens beside the computing thread
        self._thread = Thread(target=self._run, name="ptp-batcher", daemon=True)
        self._thread.start()

    async def classify(
        self, digest: str, texts: Sequence[Fields], patience: float
    ) -> list[dict[str, float] | PtpError]:
        """Return for each text the probability of each label, most likely first, or the error of this text alone.

        Raises DataError if the prompt has no labels, NotFound, Overloaded, TimedOut.
        """
        if not texts:
            return []
        with self._admit(digest, len(texts), patience) as loaded:
            self._engine.find_labels(digest)
            request, rows = _Request(len(texts)), list[Row]()
            try:
                async with asyncio.timeout(patience):
                    for place, text in enumerate(await self._render(digest, texts)):
                        if isinstance(text, PtpError):
                            request.set(place, text)
                        else:
                            rows.append(self._build_row(loaded, text, lambda one, place=place: request.set(place, one)))
                    self._enqueue(self._queries, rows)
                    return await asyncio.wrap_future(request.future)
            finally:
                self._withdraw(self._queries, rows)

    async def generate(self, digest: str, fields: Fields, sampling: Sampling, patience: float) -> AsyncIterator[Piece]:
        """Generate the text that follows, piece by piece; `patience` is for each of them. Close it to end it before.

        Raises DataError if the prompt answers with labels or lacks a field, ContextError if the text does not fit,
        NotFound, Overloaded, TimedOut.
        """
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | PtpError]()
        with self._admit(digest, 1, patience) as loaded:
            self._engine.find_limit(digest)
            rows = list[Row]()
            try:
                async with asyncio.timeout(patience):
                    (text,) = await self._render(digest, [fields])
                if isinstance(text, PtpError):
                    raise text
                take = lambda one: loop.call_soon_threadsafe(pieces.put_nowait, one)  # noqa: E731
                rows.append(self._build_row(loaded, text, take, sampling))
                self._enqueue(self._openings, rows)
                while True:
                    async with asyncio.timeout(patience):
                        piece = await pieces.get()
                    if isinstance(piece, PtpError):
                        raise piece
                    yield piece
                    if piece.finish:
                        return
            finally:
                self._withdraw(self._openings, rows)

    def hold(self, artifact: Artifact, members: Sequence[Artifact] = ()) -> None:
        """Load a prompt, or an ensemble with its `members`, and answer one question with it before anybody may ask it.

        Blocks until then; call it outside of the event loop. Raises what `Engine.add` and `Engine.probe` raise; the
        prompt is not held then.
        """
        digest, answered = artifact.digest, Future[None]()
        task = artifact.manifest.task
        with self._change:
            self._check_open()
            self._begin(digest, task, 0)
        try:
            self._engine.add(artifact, members)
            with self._change:
                self._check_open()
                self._probes.append((digest, answered))
                self._change.notify()
            answered.result()
            with self._change:
                self._held.add(digest)
        finally:
            self._end(digest, task, 0)

    def drop(self, digest: str) -> None:
        """Answer nothing more with this prompt; requests that it is answering end as they began."""
        with self._change:
            self._held.discard(digest)
            self._ended.add(digest)
            self._change.notify()

    def observe(self) -> Load:
        """Return what it does and has done."""
        caches = self._engine.caches
        with self._change:
            return Load(
                self._tasks.total(),
                len(self._streams),
                self._batches,
                self._texts,
                caches.size,
                caches.hits,
                caches.misses,
                self._thread.is_alive(),
            )

    async def drain(self, patience: float) -> None:
        """Take no more requests, and return once all are answered; raises TimedOut if that takes longer."""
        with self._change:
            self._draining = True
        until = time.monotonic() + patience
        while self._tasks.total():
            if time.monotonic() > until:
                raise TimedOut(f"{self._tasks.total()} requests still run after {patience:g} s; end the process")
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """End the computing thread; requests that still wait are refused."""
        with self._change:
            self._closed = self._draining = True
            self._change.notify()
        self._thread.join()
        self._reader.shutdown(cancel_futures=True)

    @contextmanager
    def _admit(self, digest: str, count: int, patience: float) -> Iterator[LoadedPrompt]:
        """Let so many texts in, while this is open; raises Overloaded, or NotFound for a prompt that is not held."""
        with self._change:
            self._check_open()
            if digest not in self._held:
                raise NotFound(f"no prompt {digest[:12]} is served here; load it, or ask for another version")
            loaded = self._engine.find(digest)
            task, waiting = loaded.artifact.manifest.task, self._tasks.total()
            if count > self._bound:
                raise DataError(f"{count} texts in one request; give at most {self._bound}")
            if self._tasks[task] + count > self._bound - waiting:
                seconds = min(max(waiting / self._rate, FASTEST), SLOWEST)
                raise Overloaded(
                    f"{waiting} texts wait for an answer, {self._tasks[task]} of them for {task}; try again in "
                    f"{seconds:.0f} s",
                    seconds,
                )
            self._begin(digest, task, count)
        try:
            yield loaded
        except TimeoutError:
            raise TimedOut(f"{task}: no answer within {patience:g} s; {waiting} texts waited before it") from None
        finally:
            self._end(digest, task, count)

    def _begin(self, digest: str, task: str, count: int) -> None:
        """Keep a prompt in memory, and count texts of its task, until `_end`."""
        self._users[digest] += 1
        self._tasks[task] += count

    def _end(self, digest: str, task: str, count: int) -> None:
        with self._change:
            self._users[digest] -= 1
            self._tasks[task] -= count
            if not self._tasks[task]:
                del self._tasks[task]
            if not self._users[digest]:
                del self._users[digest]
                self._ended.add(digest)
                self._change.notify()

    def _check_open(self) -> None:
        if self._draining:
            raise Overloaded("this server is about to end; ask another one", FASTEST)

    async def _render(self, digest: str, texts: Sequence[Fields]) -> list[Rendered | PtpError]:
        """Return each text as token ids, or its own error."""
        loop, rendered = asyncio.get_running_loop(), list[Rendered | PtpError]()

        def render(first: int) -> None:
            for number, fields in enumerate(texts[first : first + RENDERED], first + 1):
                try:
                    rendered.append(self._engine.render(Question(digest, fields), number))
                except PtpError as error:
                    rendered.append(error)

        for first in range(0, len(texts), RENDERED):
            await loop.run_in_executor(self._reader, render, first)
        return rendered

    def _build_row(
        self,
        loaded: LoadedPrompt,
        text: Rendered,
        deliver: Callable[[object], object],
        sampling: Sampling | None = None,
    ) -> Row:
        return Row(text, loaded.artifact.manifest.task, len(loaded.prompts), deliver, sampling)

    def _enqueue(self, queue: FairQueue, rows: Sequence[Row]) -> None:
        with self._change:
            if self._closed:
                self._check_open()
            for row in rows:
                queue.add(row)
            self._change.notify()

    def _withdraw(self, queue: FairQueue, rows: Sequence[Row]) -> None:
        """Take rows out that nobody waits for any more; those that have been answered are gone already."""
        with self._change:
            for row in rows:
                queue.remove(row)
                if row.sampling is not None:
                    self._left.append(row)
            self._change.notify()

    def _run(self) -> None:
        try:
            while self._wait():
                self._unload()
                self._answer_probes()
                self._answer(self._take(self._queries))
                self._generate()
        finally:
            self._refuse()

    def _refuse(self) -> None:
        """Refuse all that waits, and all that comes: nobody computes any more."""
        refusal = Overloaded("this server has ended; ask another one", FASTEST)
        with self._change:
            self._closed = self._draining = True
            rows = [*self._streams.values(), *self._queries.clear(), *self._openings.clear()]
            probes = [answered for _, answered in self._probes]
        for row in rows:
            _deliver(row, refusal)
        for answered in probes:
            answered.set_exception(refusal)

    def _wait(self) -> bool:
        """Wait until there is something to do, and a little longer for company; return False if all is to end."""
        with self._change:
            idle = False
            while not (self._closed or self._has_work()):
                idle = True
                self._change.wait()
        if idle:
            time.sleep(LINGER)
        return not self._closed

    def _has_work(self) -> bool:
        return any((self._queries, self._openings, self._streams, self._left, self._probes, self._ended))

    def _unload(self) -> None:
        """Unload the prompts that are neither held nor in use any more."""
        with self._change:
            for digest in self._ended - self._held - self._users.keys():
                self._engine.unload(digest)
            self._ended.clear()

    def _take(self, queue: FairQueue) -> list[Row]:
        """Take the rows of the next batch: a short one if texts are being generated, which wait meanwhile."""
        tokens = self._tokens // 4 if self._streams else self._tokens
        with self._change:
            return queue.take(tokens, self._is_near)

    def _is_near(self, row: Row) -> bool:
        return row.text.digest in self._engine.caches

    def _answer_probes(self) -> None:
        with self._change:
            probes = list(self._probes)
            self._probes.clear()
        for digest, answered in probes:
            try:
                self._engine.probe(digest)
            except Exception as error:  # noqa: BLE001, it is raised where somebody waits for it
                answered.set_exception(error)
            else:
                answered.set_result(None)

    def _answer(self, rows: Sequence[Row]) -> None:
        """Score a batch; if that fails, its halves, so that a row which cannot be answered fails alone."""
        if not rows:
            return
        started = time.monotonic()
        try:
            scores = self._engine.score([row.text for row in rows])
        except Exception as error:  # noqa: BLE001, the thread answers others
            if len(rows) == 1:
                _deliver(rows[0], _explain(error, rows[0]))
                return
            middle = len(rows) // 2
            self._answer(rows[:middle])
            self._answer(rows[middle:])
            return
        with self._change:
            self._batches += 1
            self._texts += len(rows)
            self._rate += 0.1 * (len(rows) / (time.monotonic() - started) - self._rate)
        for row, own in zip(rows, scores, strict=True):
            _deliver(row, self._name_labels(row, own))

    def _name_labels(self, row: Row, scores: Tensor) -> dict[str, float] | PtpError:
        """Return the probability of each label, most likely first."""
        names, shares = self._engine.find_labels(row.text.digest).names, scores.softmax(0).tolist()
        if not all(0 <= share <= 1 for share in shares):
            return ArtifactError(f"{row.task} {row.text.digest[:12]}: its scores are no finite numbers; roll it back")
        return dict(sorted(zip(names, shares, strict=True), key=lambda pair: -pair[1]))

    def _generate(self) -> None:
        """Let those leave whose clients did, let others join if there is room, and give every row a token."""
        with self._change:
            left = set(self._left)
            self._left.clear()
        for handle in [handle for handle, row in self._streams.items() if row in left]:
            self._decoder.leave(handle)
            del self._streams[handle]
        if self._openings and not self._decoder.waiting:
            for row in self._take(self._openings):
                self._join(row)
        if not self._streams:
            return
        try:
            emitted = self._decoder.step()
        except Exception as error:  # noqa: BLE001, the thread answers others
            for handle, row in list(self._streams.items()):
                self._decoder.leave(handle)
                _deliver(self._streams.pop(handle), _explain(error, row))
            return
        for handle, outcome in emitted:
            row = self._streams[handle]
            if isinstance(outcome, PtpError) or outcome.finish:
                del self._streams[handle]
            _deliver(row, outcome)

    def _join(self, row: Row) -> None:
        digest, sampling = row.text.digest, row.sampling or Sampling()
        try:
            cache, limit = self._engine.find_cache(digest), self._engine.find_limit(digest)
            self._streams[self._decoder.join(cache, row.text.ids, sampling, limit)] = row
        except Exception as error:  # noqa: BLE001, the thread answers others
            _deliver(row, _explain(error, row))


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
