"""SIGTERM while a block works: it is noted, and nothing that the block does meanwhile makes it forgotten."""

import os
import signal
from collections.abc import Iterator

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
