"""Prefect's own engine in the process of a test, which leaves nothing behind there."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings


@contextmanager
def running_flows(api: str, home: Path) -> Iterator[None]:
    """Let flows that are called in the block run by the server at that address."""
    with temporary_settings({PREFECT_HOME: home, PREFECT_API_URL: api, PREFECT_LOGGING_TO_API_ENABLED: False}):
        yield
        EventsWorker.drain_all(timeout=20)  # else it goes on trying after the server is down; it may stand still
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler).__module__.startswith("prefect")]:
        root.removeHandler(handler)  # else it prints what later tests of this process log
