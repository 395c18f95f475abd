"""How far long work has come: whoever watches it hears so every few seconds, however long a single pass takes.

What computes says what it counts (`phase`, `count`, `expect`, `advance`); whoever starts it says who is to hear of it
(`watch`). A thread speaks, so that a slow pass or a bootstrap is no silence. Without a watch nothing happens.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

INTERVAL = 8.0  # seconds between two lines: at most 10 are promised

Group = TypeVar("Group", bound=Sized)


class Standing(NamedTuple):
    """Where the work is: the names of its phases, and of the innermost that counts how much is done, and how much of
    that in `seconds`; an earlier process may have done the rest.
    """

    phase: str
    done: int
    total: int
    unit: str
    fresh: int
    seconds: float

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.fresh / max(self.seconds, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds that are left at this rate; None before anything is done."""
        return (self.total - self.done) / self.rate if self.fresh else None

    def __str__(self) -> str:
        """Return `movie-sentiment: test rows: 640 of 1487 rows, 52.1 rows/s, 0m16s left`."""
        if not self.total:
            return f"{self.phase}: {self.seconds:.0f} s so far"
        counted = f"{self.phase}: {self.done} of {self.total} {self.unit}"
        if self.left is None:
            return f"{counted}, {self.seconds:.0f} s so far"
        rate = f"{self.rate:.1f}" if self.rate < 100 else f"{self.rate:.0f}"
        return f"{counted}, {rate} {self.unit}/s, {int(self.left) // 60}m{int(self.left) % 60:02d}s left"


class Display(Protocol):
    """Shows how the work stands, every `interval` seconds; no method raises."""

    interval: float

    def show(self, standing: Standing) -> None:
        """Show where the work is now; called by another thread than the work's."""

    def close(self) -> None:
        """The work has ended."""


class Lines:
    """Reports every standing as a line of text."""

    def __init__(self, report: Callable[[str], None], interval: float = INTERVAL) -> None:
        self._report = report
        self.interval = interval

    def show(self, standing: Standing) -> None:
        """Report one line."""
        self._report(str(standing))

    def close(self) -> None:
        """Do nothing: the lines stay."""


@dataclass(eq=False)
class _Phase:
    name: str
    started: float = field(default_factory=time.perf_counter)
    whole: bool = False  # what is done inside is not shown
    before: int = 0  # done by an earlier process
    done: int = 0
    total: int = 0
    unit: str = "rows"


_phases: ContextVar[list[_Phase] | None] = ContextVar("phases of the watched work", default=None)


@contextmanager
def watch(name: str, display: Display) -> Iterator[None]:
    """Show how the work inside stands until it ends; `name` stands before its phases."""
    phases, ended = [_Phase(name)], threading.Event()
    token = _phases.set(phases)
    context = copy_context()  # a log may belong to the run that the work belongs to

    def speak() -> None:
        while not ended.wait(display.interval):
            context.run(display.show, _describe(phases))

    thread = threading.Thread(target=speak, name=f"progress of {name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _phases.reset(token)
        display.close()


@contextmanager
def phase(name: str, whole: bool = False) -> Iterator[None]:
    """Name what is done inside; of a whole phase, nobody sees what is counted within its parts."""
    phases = _phases.get()
    if phases is None:
        yield
        return
    own = _Phase(name, whole=whole)
    phases.append(own)
    try:
        yield
    finally:
        if own in phases:  # an error may have ended the phase around it before
            del phases[phases.index(own) :]


def count(groups: Iterable[Group], total: int, unit: str = "rows") -> Iterator[Group]:
    """Yield the groups; one counts as done, with all that is in it, when the next is asked for."""
    with phase(""):
        expect(total, unit)
        for group in groups:
            yield group
            advance(len(group))


def expect(total: int, unit: str, done: int = 0) -> None:
    """Say how much the phase has to do, and how much of it was done before."""
    if phases := _phases.get():
        phases[-1].total, phases[-1].unit, phases[-1].done, phases[-1].before = total, unit, done, done
        phases[-1].started = time.perf_counter()


def advance(done: int) -> None:
    """Say that the phase has done so much more."""
    if phases := _phases.get():
        phases[-1].done += done


def _describe(phases: list[_Phase]) -> Standing:
    """Describe a list that the work's thread changes meanwhile."""
    own = list(phases)
    own = own[: next((place for place, phase in enumerate(own, 1) if phase.whole), len(own))]
    counting = next((phase for phase in reversed(own) if phase.total), own[-1])
    names = [phase.name for phase in own[: own.index(counting) + 1] if phase.name]
    seconds = time.perf_counter() - counting.started
    fresh = counting.done - counting.before
    return Standing(": ".join(names), counting.done, counting.total, counting.unit, fresh, seconds)
