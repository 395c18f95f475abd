"""A fuzzer that is led by coverage, for ten minutes: inputs that reach new lines of a parser are kept and changed on.

Run by `make soak`; PTP_FUZZ_SECONDS is another length. Each parser works in a process of its own, in which 256 MB more
than it began with are a MemoryError, and an alarm ends what takes longer than two seconds of processor time.
"""

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.queues import Queue
from types import FrameType
from typing import Any

import pytest

from ptpipeline.errors import PtpError
from tests.parsers import PARSERS, TOKENS

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("PTP_FUZZ_SECONDS", "600"))
FOLLOWED = ("/ptpipeline/", "/registry/", "/ruamel/", "/json/", "/numpy/lib/")


class Lines:
    """The lines of the parsers, and of the libraries in Python that they call, which any input has reached."""

    def __init__(self) -> None:
        self.seen: set[tuple[Any, int]] = set()
        self.grew = False

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not any(part in frame.f_code.co_filename for part in FOLLOWED):
            return None
        if event == "line" and (place := (frame.f_code, frame.f_lineno)) not in self.seen:
            self.seen.add(place)
            self.grew = True
        return self.trace


def change(body: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """The bytes, changed in a few places."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, end = sorted(chance.randrange(len(body) + 1) for _ in range(2))
        end = min(end, at + chance.choice((0, 1, 4, 30, 400)))
        other = chance.choice(others)
        start = chance.randrange(len(other) + 1)
        put = chance.choice(
            (chance.choice(TOKENS), chance.randbytes(chance.randrange(5)), other[start : start + 60], body[at:end] * 3)
        )
        body = body[:at] + put + body[end:]
    return body[: 2**16]


def fuzz(name: str, seconds: float, told: "Queue[tuple[str, int, int, list[tuple[str, bytes]]]]") -> None:
    """Try one parser for that long; tell tries, lines, and what broke the promise."""
    parser, chance, lines = PARSERS[name], random.Random(name), Lines()
    parser.parse(parser.sound)  # imports what it needs
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20, resource.RLIM_INFINITY))

    def stop(*_: Any) -> None:
        raise TimeoutError("two seconds")

    signal.signal(signal.SIGVTALRM, stop)
    kept, broken, tries, until = [parser.sound, *TOKENS], list[tuple[str, bytes]](), 0, time.monotonic() + seconds
    while time.monotonic() < until and len(broken) < 20:
        raw, lines.grew, tries = change(chance.choice(kept), kept, chance), False, tries + 1
        sys.settrace(lines.trace)
        # tracing makes a line of Python take some ten times as long; the promise is tried again without it
        signal.setitimer(signal.ITIMER_VIRTUAL, 20)
        try:
            parser.parse(raw)
        except PtpError as error:
            if "MemoryError" in str(error):  # `parsing` makes a sentence of it, as of whatever a parser raises
                broken.append(("MemoryError", raw))
        except BaseException as error:  # noqa: BLE001 - this is what it looks for
            broken.append((type(error).__name__, raw))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            sys.settrace(None)
        if lines.grew:
            kept.append(raw)
            began = time.process_time()
            with suppress(PtpError):
                parser.parse(raw)
            if time.process_time() - began > 2:
                broken.append(("more than two seconds", raw))
    told.put((name, tries, len(lines.seen), broken))


def test_no_bytes_break_the_promise() -> None:
    context = multiprocessing.get_context("spawn")
    told, share = context.Queue(), SECONDS / len(PARSERS)
    broken = []
    for name in PARSERS:
        process = context.Process(target=fuzz, args=(name, share, told))
        process.start()
        found = told.get(timeout=share + 120)
        process.join()
        print(f"{found[0]}: {found[1]} tries, {found[2]} lines, {len(found[3])} broken", flush=True)
        broken += [(found[0], *item) for item in found[3]]
    assert broken == []
