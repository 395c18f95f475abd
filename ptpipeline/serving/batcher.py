"""Requests of many clients and tasks, and the prompts that answer them: what is let in, and how long it waits.

An event loop waits for the answers, and a thread of its own computes them (serving/worker.py).
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from threading import RLock
from typing import Any

from ptpipeline.errors import DataError, NotFound, Overloaded, PtpError, TimedOut
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.answerer import Load, Piece, Sampling, ignore
from ptpipeline.serving.engine import Engine, LoadedPrompt, Question, Rendered
from ptpipeline.serving.queues import Row
from ptpipeline.serving.worker import Worker
from ptpipeline.task.template import Fields

WAITING = 4096  # texts that wait for an answer at once
RENDERED = 16  # texts that become tokens before another request's may
SHORT = 2000  # characters of a request that become tokens at once, in about a millisecond; more do in a thread
SOONEST, LATEST = 0.5, 60.0  # seconds after which another try may be worth it


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
    """Answers texts with the prompts that it holds (see `answerer.Answerer`).

    A task may have as many texts waiting as there is room left for other tasks' (Choudhury & Hahne 1998): so no task
    can fill the queue, and one alone may take half of it.
    """

    def __init__(self, engine: Engine, waiting: int = WAITING) -> None:
        self._engine, self._worker = engine, Worker(engine)
        self._bound = waiting
        self._reader = ThreadPoolExecutor(1, "ptp-reader")  # texts become tokens beside the computing thread
        self._lock = RLock()  # guards all that follows
        self._held = set[str]()  # digests that may be asked
        self._users, self._tasks = Counter[str](), Counter[str]()  # calls by digest, texts by task
        self._draining = False

    async def classify(
        self, digest: str, texts: Sequence[Fields], patience: float, count: Callable[[int], object] = ignore
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
                            rows.append(_build_row(loaded, text, partial(request.set, place)))
                    self._worker.add(rows)
                    outcomes = await asyncio.wrap_future(request.future)
                    count(sum(self._engine.count_tokens(row.text) for row in rows))
                    return outcomes
            finally:
                self._worker.remove(rows)

    async def generate(self, digest: str, fields: Fields, sampling: Sampling, patience: float) -> AsyncIterator[Piece]:
        """Generate the text that follows, piece by piece; `patience` is for each of them. Close it to end it before.

        Raises DataError if the prompt answers with labels or lacks a field, ContextError if the text does not fit,
        NotFound, Overloaded, TimedOut.
        """
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | PtpError]()

        def take(piece: Piece | PtpError) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        with self._admit(digest, 1, patience) as loaded:
            self._engine.find_limit(digest)
            rows = list[Row]()
            try:
                async with asyncio.timeout(patience):
                    (text,) = await self._render(digest, [fields])
                if isinstance(text, PtpError):
                    raise text
                rows.append(_build_row(loaded, text, take, sampling))
                self._worker.add(rows)
                while True:
                    async with asyncio.timeout(patience):
                        piece = await pieces.get()
                    if isinstance(piece, PtpError):
                        raise piece
                    yield piece
                    if piece.finish:
                        return
            finally:
                self._worker.remove(rows)

    def hold(self, artifact: Artifact, members: Sequence[Artifact] = ()) -> None:
        """Load a prompt, or an ensemble with its `members`, and answer one question with it before anybody may ask it.

        Blocks until then; call it outside of the event loop. Raises what `Engine.add` and `Engine.probe` raise; the
        prompt is not held then.
        """
        digest, task = artifact.digest, artifact.manifest.task
        self._begin(digest, task, 0)
        try:
            self._engine.add(artifact, members)
            self._worker.submit(partial(self._engine.probe, digest)).result()
            with self._lock:
                self._held.add(digest)
        finally:
            self._end(digest, task, 0)

    def drop(self, digest: str) -> None:
        """Answer nothing more with this prompt; requests that it is answering end as they began."""
        with self._lock:
            self._held.discard(digest)
        self._worker.submit(partial(self._unload, digest))

    def observe(self) -> Load:
        """Return what it does and has done."""
        worker, caches = self._worker, self._engine.caches
        return Load(
            self._count_waiting(),
            worker.generating,
            worker.batches,
            worker.texts,
            caches.size,
            caches.hits,
            caches.misses,
            worker.alive,
        )

    def _count_waiting(self) -> int:
        with self._lock:
            return self._tasks.total()

    async def drain(self, patience: float) -> None:
        """Take no more requests, and return once all are answered; raises TimedOut if that takes longer."""
        self._draining = True
        until = time.monotonic() + patience
        while running := self._count_waiting():
            if time.monotonic() > until:
                raise TimedOut(f"{running} texts still have no answer after {patience:g} s; end the process")
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """End the computing thread; requests that still wait are refused."""
        self._draining = True
        self._worker.close()
        self._reader.shutdown(cancel_futures=True)

    @contextmanager
    def _admit(self, digest: str, count: int, patience: float) -> Iterator[LoadedPrompt]:
        """Let so many texts in, while this is open; raises Overloaded, or NotFound for a prompt that is not held."""
        with self._lock:
            if self._draining:
                raise Overloaded("this server is about to end; ask another one", SOONEST)
            if digest not in self._held:
                raise NotFound(f"no prompt {digest[:12]} is served here; load it, or ask for another version")
            if count > self._bound:
                raise DataError(f"{count} texts in one request; give at most {self._bound}")
            loaded = self._engine.find(digest)
            task, waiting = loaded.artifact.manifest.task, self._tasks.total()
            if self._tasks[task] + count > self._bound - waiting:
                seconds = min(max(waiting / self._worker.rate, SOONEST), LATEST)
                raise Overloaded(
                    f"{waiting} texts wait for an answer, {self._tasks[task]} of them for {task}; try again in "
                    f"{seconds:.1f} s",
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
        with self._lock:
            self._users[digest] += 1
            self._tasks[task] += count

    def _end(self, digest: str, task: str, count: int) -> None:
        with self._lock:
            self._users[digest] -= 1
            self._tasks[task] -= count
            if not self._tasks[task]:
                del self._tasks[task]
            if not self._users[digest]:
                del self._users[digest]
            gone = digest not in self._held and digest not in self._users
        if gone:
            self._worker.submit(partial(self._unload, digest))

    def _unload(self, digest: str) -> None:
        """Unload a prompt if it is neither held nor in use any more."""
        with self._lock:
            if digest not in self._held and digest not in self._users:
                self._engine.unload(digest)

    async def _render(self, digest: str, texts: Sequence[Fields]) -> list[Rendered | PtpError]:
        """Return each text as token ids, or its own error."""
        loop, rendered = asyncio.get_running_loop(), list[Rendered | PtpError]()

        def render(first: int) -> None:
            for number, fields in enumerate(texts[first : first + RENDERED], first + 1):
                try:
                    rendered.append(self._engine.render(Question(digest, fields), number))
                except PtpError as error:
                    rendered.append(error)

        short = sum(map(_count_characters, texts)) <= SHORT
        for first in range(0, len(texts), RENDERED):
            if short:
                render(first)
            else:
                await loop.run_in_executor(self._reader, render, first)
        return rendered


def _count_characters(fields: Fields) -> int:
    return sum(len(text) if isinstance(text, str) else 0 for text in fields.values()) + 1  # a row without is work too


def _build_row(
    loaded: LoadedPrompt, text: Rendered, deliver: Callable[[Any], object], sampling: Sampling | None = None
) -> Row:
    return Row(text, loaded.artifact.manifest.task, len(loaded.prompts), deliver, sampling)
