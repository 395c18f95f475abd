"""Processes of a test's own, which are killed, race each other, or know nothing of what this one has read.

A server that has imported the registry once forks them: a start takes milliseconds instead of two seconds of imports.
What needs torch is a copy of this process, which has imported it: five seconds less.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Answer = TypeVar("Answer")

_copied = multiprocessing.get_context("fork")
_forked = multiprocessing.get_context("forkserver")
Queue, Pipe = _forked.Queue, _forked.Pipe

IMPORTED = [
    "benchmarks.chaos.worker",
    "boto3",
    "hypothesis.stateful",
    "mlflow.tracking",
    "pytest",
    "sqlalchemy.dialects.postgresql.psycopg",
]


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that calls `target`, in the environment that this one has now."""
    process = _forked.Process(target=_run, args=(dict(os.environ), target, arguments))
    process.start()
    return process


def copy(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A copy of this process that calls `target`; it has every module, and what this one has read so far."""
    process = _copied.Process(target=_call_and_end, args=(target, arguments))
    process.start()
    return process


def ask(question: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a copy of this process answers; nothing that it does is left in this one."""
    ours, theirs = _copied.Pipe(duplex=False)

    def answer() -> None:
        theirs.send(question(*arguments))

    process = copy(answer)
    theirs.close()
    try:
        answered: Answer = ours.recv()  # EOFError if it died
    except BaseException:  # such as the end of the test's time
        process.kill()
        raise
    finally:
        process.join()
    return answered


def _call_and_end(target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Call the target and be gone: Python's own end would wait for threads of the original, which a copy lacks.

    So would OpenMP, if torch computed with several threads before.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        target(*arguments)
    except SystemExit as end:
        os._exit(int(end.code or 0))
    os._exit(0)


def _run(environment: dict[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


@contextmanager
def as_another_user(user: int = 65533) -> Iterator[None]:
    """What root makes in the block, such as sockets, belongs to that user."""
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def in_child(work: Callable[[], None], ends: int = 0) -> None:
    """Run `work` in a copy of this process, whose limits and rights it may give away; `ends` is its exit code."""
    process = copy(work)
    process.join()
    assert process.exitcode == ends, process.exitcode
