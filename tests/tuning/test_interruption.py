"""SIGTERM while a block works: it is noted, and nothing that the block does meanwhile makes it forgotten."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ptpipeline.errors import TrainingError
from ptpipeline.tuning.interruption import deferred_sigterm


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_it_is_noted_and_the_block_goes_on() -> None:
    with deferred_sigterm() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.asked


def test_an_error_that_comes_first_does_not_lose_it() -> None:
    def fail() -> None:
        with deferred_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            raise TrainingError("this gang failed, and the night would go on with the next")

    with pytest.raises(SystemExit, match="143"):
        fail()


def test_an_error_without_it_stays_that_error() -> None:
    with pytest.raises(TrainingError, match="failed"), deferred_sigterm():
        raise TrainingError("this gang failed")


def test_an_impatient_second_one_changes_nothing() -> None:
    with deferred_sigterm() as interruption:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.asked


def test_after_the_grace_the_block_ends_wherever_it_is() -> None:
    def sleep_on() -> None:
        with deferred_sigterm(0.1):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    began = time.monotonic()
    with pytest.raises(SystemExit, match="143"):
        sleep_on()
    assert time.monotonic() - began < 10


def test_what_handled_it_before_handles_it_again_and_no_timer_is_left() -> None:
    seen = list[int]()
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    with deferred_sigterm(0.1):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    assert seen == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]


def test_it_ends_by_what_handled_it_before() -> None:
    def handle(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handle)
    with deferred_sigterm() as interruption, pytest.raises(KeyboardInterrupt):
        interruption.end()


def test_one_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with deferred_sigterm() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not interruption.asked


def test_a_thread_that_gets_no_signals_works_all_the_same() -> None:
    def work() -> bool:
        with deferred_sigterm() as interruption:
            return interruption.asked

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() is False
