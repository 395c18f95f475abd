"""Copies of a test's process."""

import sys
import threading
from collections.abc import Callable

import torch

from tests import processes


def fail() -> None:
    """What ends the threads of a library, in a process where they never ran."""
    raise RuntimeError


def copy_beside_threads(target: Callable[..., None], *arguments: int) -> int | None:
    """How a copy of this process ends if the end of its threads is prepared, as Prefect's client does."""
    threading._register_atexit(fail)  # type: ignore[attr-defined]
    process = processes.copy(target, *arguments)
    process.join()
    return process.exitcode


def test_a_copy_does_not_wait_for_the_threads_of_its_original() -> None:
    assert processes.ask(copy_beside_threads, int) == 0
    assert processes.ask(copy_beside_threads, sys.exit, 3) == 3


def add_up() -> float:
    return float(torch.ones(2**20).sum())


def test_a_copy_computes_after_its_original_used_several_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert processes.ask(add_up) == add_up() == processes.ask(add_up)
    finally:
        torch.set_num_threads(before)
