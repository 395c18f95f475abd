"""Log lines of flow runs hold no control character of other people."""

import io
import logging
from collections.abc import Iterator

import pytest

from flows.logs import write_plainly

FORGED = "\x1b[2J\nall is well \u202e"


@pytest.fixture(autouse=True)
def _factory() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize(
    ("name", "written"),
    [("registry.listing", r"key \x1b[2J\nall is well \u202e" + "\n"), ("prefect.engine", f"key {FORGED}\n")],
)
def test_lines_of_our_loggers_are_written_out_and_no_others(name: str, written: str) -> None:
    write_plainly()
    log, stream = logging.getLogger(name), io.StringIO()
    handler = logging.StreamHandler(stream)
    log.addHandler(handler)
    try:
        log.error("key %s", FORGED)
    finally:
        log.removeHandler(handler)
    assert stream.getvalue() == written
