"""Processes of a test's own, which are killed or race each other.

A server that has imported the registry once forks them: a start takes milliseconds instead of two seconds of imports.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

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


def _run(environment: dict[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)
