"""Waiting in tests for what takes its time elsewhere."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_for(what: Callable[[], Found], seconds: float, every: float = 0.1) -> Found:
    """Return the first answer of `what` that is true; fail if there is none within so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s; the last answer: {found!r}"
        time.sleep(every)
    return found
