"""SIGTERM in a training (an evicted pod, `ptp down`, a cancelled flow run): it ends between two steps, behind a
checkpoint, instead of in the middle of one.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

GRACE_SECONDS = 5.0  # for the step in progress and its checkpoint; whoever sends SIGTERM may kill some seconds later


class Interruption:
    """Whether this process was told to end."""

    def __init__(self, previous: Any = signal.SIG_DFL) -> None:
        self.deadline: float | None = None
        self._previous = previous

    @property
    def asked(self) -> bool:
        """Whether SIGTERM came."""
        return self.deadline is not None

    def end(self) -> NoReturn:
        """Do what SIGTERM did before: raise what its handler raises, or SystemExit, which closes what is open."""
        if callable(self._previous):
            self._previous(signal.SIGTERM, None)
        raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def deferred_sigterm(grace: float = GRACE_SECONDS) -> Iterator[Interruption]:
    """Only note SIGTERM while the block runs; whoever works in it looks at `asked` and calls `end`.

    After `grace` seconds it ends the block wherever it is. Outside of the main thread, which alone gets signals, and
    if SIGTERM is ignored, nothing is changed.
    """
    previous = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or previous in (None, signal.SIG_IGN):
        yield Interruption()
        return
    interruption, timers = Interruption(previous), list[threading.Timer]()

    def note(_signal: int, _frame: FrameType | None) -> None:
        if interruption.deadline is None:
            interruption.deadline = time.monotonic() + grace
            timers.append(threading.Timer(grace, os.kill, (os.getpid(), signal.SIGTERM)))
            timers[0].daemon = True
            timers[0].start()
        elif time.monotonic() >= interruption.deadline:  # the timer's; an impatient sender's second one is not
            interruption.end()

    signal.signal(signal.SIGTERM, note)
    try:
        yield interruption
    except Exception:
        if interruption.asked:
            interruption.end()  # told to end: the error only came first
        raise
    finally:
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGTERM, previous)
