"""Long work is never silent: its watcher hears every interval where it is, also within one slow pass."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from ptpipeline.progress import Lines, Standing, _phases, advance, count, expect, phase, watch

INTERVAL = 0.05


class Heard:
    """The lines of a watch, and when they came."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.times: list[float] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self.times.append(time.perf_counter())

    @property
    def display(self) -> Lines:
        return Lines(self, INTERVAL)


def slowly(groups: list[list[int]], seconds: float) -> Iterator[list[int]]:
    for group in groups:
        time.sleep(seconds)
        yield group


def test_lines_are_no_further_apart_than_the_interval_in_a_slow_pass() -> None:
    heard, started = Heard(), time.perf_counter()
    with watch("task", heard.display), phase("test rows"):
        for _ in count(slowly([[1, 2], [3]], 1.0), 3):
            pass
    times = [started, *heard.times, time.perf_counter()]
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert len(heard.lines) >= 4
    assert max(gaps) < 0.9  # shorter than one pass: an interval, and what other processes take
    assert heard.lines[0].startswith("task: test rows: 0 of 3 rows, ")
    assert any(line.startswith("task: test rows: 2 of 3 rows, ") and line.endswith("left") for line in heard.lines)


def test_the_innermost_phase_that_counts_is_shown() -> None:
    heard = Heard()
    with watch("training", heard.display):
        expect(10, "steps")
        advance(4)
        time.sleep(2 * INTERVAL)
        with phase("dev"):
            for _ in count(slowly([[1]], 2 * INTERVAL), 1):
                pass
        time.sleep(2 * INTERVAL)
    names = [line.partition(" of ")[0] for line in heard.lines]
    assert names[0] == "training: 4"
    assert "training: dev: 0" in names
    assert names[-1] == "training: 4"


def test_what_is_counted_within_a_whole_phase_is_not_shown() -> None:
    heard = Heard()
    with watch("task", heard.display), phase("latency", whole=True):
        expect(2, "texts")
        for _ in range(2):
            for _ in count(slowly([[1]], 2 * INTERVAL), 1):
                pass
            advance(1)
    names = [line.partition(" texts")[0] for line in heard.lines]
    assert {"task: latency: 0 of 2", "task: latency: 1 of 2"} <= set(names)
    assert not any("rows" in line for line in heard.lines)


def test_what_counts_nothing_still_says_that_it_goes_on() -> None:
    heard = Heard()
    with watch("task", heard.display), phase("norms"):
        time.sleep(3 * INTERVAL)
    assert set(heard.lines) == {"task: norms: 0 s so far"}


def test_an_error_inside_ends_the_phases_that_it_left() -> None:
    heard = Heard()
    with watch("task", heard.display):
        kept = None
        try:
            with phase("first"):
                for _ in count([[1]], 1):
                    raise ValueError
        except ValueError as error:
            kept = error  # whose traceback still holds the iteration
        with phase("second"):
            time.sleep(2 * INTERVAL)
            del kept
            time.sleep(2 * INTERVAL)
    assert {line.partition(": 0 s")[0] for line in heard.lines} == {"task: second"}


def test_without_a_watch_nothing_happens() -> None:
    before = threading.active_count()
    with phase("alone"):
        assert list(count([[1], [2]], 2)) == [[1], [2]]
        expect(1, "steps")
        advance(1)
    assert threading.active_count() == before


def test_behind_a_watch_nothing_is_noted_and_its_display_is_closed() -> None:
    heard, closed = Heard(), []

    class Closing(Lines):
        def close(self) -> None:
            closed.append(threading.active_count())

    before = threading.active_count()
    with pytest.raises(ValueError, match="inside"), watch("task", Closing(heard, 60)):
        raise ValueError("inside")
    assert closed == [before]  # its thread shows nothing more
    assert _phases.get() is None


def test_the_speed_is_that_of_what_is_counted_and_not_of_what_came_before_it() -> None:
    shown: list[Standing] = []

    class Keeping(Lines):
        def show(self, standing: Standing) -> None:
            shown.append(standing)

    with watch("task", Keeping(print, INTERVAL)), phase("test rows"):
        time.sleep(4 * INTERVAL)
        expect(10, "rows")
        advance(5)
        time.sleep(2 * INTERVAL)
    counting = next(standing for standing in shown if standing.total)
    assert counting.seconds < 3 * INTERVAL


def test_the_thread_ends_with_the_watch() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="inside"), watch("task", Heard().display):
        raise ValueError("inside")
    assert threading.active_count() == before


def test_a_display_belongs_to_the_run_that_the_work_belongs_to() -> None:
    run, seen = ContextVar("run", default="none"), []
    run.set("this one")
    with watch("task", Lines(lambda _: seen.append(run.get()), INTERVAL)):
        time.sleep(3 * INTERVAL)
    assert set(seen) == {"this one"}


@pytest.mark.parametrize(
    ("standing", "line"),
    [
        (Standing("a: b", 640, 1487, "rows", 640, 12.29), "a: b: 640 of 1487 rows, 52.1 rows/s, 0m16s left"),
        (Standing("a", 90, 120, "steps", 30, 60.0), "a: 90 of 120 steps, 0.5 steps/s, 1m00s left"),
        (Standing("a", 5000, 9000, "rows", 5000, 10.0), "a: 5000 of 9000 rows, 500 rows/s, 0m08s left"),
        (Standing("a", 90, 120, "steps", 0, 8.0), "a: 90 of 120 steps, 8 s so far"),
        (Standing("a", 0, 0, "rows", 0, 16.0), "a: 16 s so far"),
    ],
)
def test_a_standing_reads_as_one_line(standing: Standing, line: str) -> None:
    assert str(standing) == line


def test_steps_of_an_earlier_process_are_no_speed() -> None:
    shown: list[Standing] = []

    class Keeping(Lines):
        def show(self, standing: Standing) -> None:
            shown.append(standing)

    with watch("training", Keeping(print, INTERVAL)):
        expect(120, "steps", 90)
        time.sleep(2 * INTERVAL)
    assert (shown[0].done, shown[0].fresh, shown[0].left) == (90, 0, None)
