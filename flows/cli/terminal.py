"""Lines on the terminal: no verb prints, or logs, other people's control characters.

Reasons, labels, texts, names of objects and servers' answers are other people's words. Every line goes through `say`,
the log through `PlainFormatter`, and what Python itself would print of an unexpected error through `say_traceback`.
Imports nothing heavy, because every verb imports it.
"""

import io
import logging
import os
import shutil
import sys
import textwrap
import traceback
from types import TracebackType
from typing import Any, TextIO


def prepare_streams() -> None:
    """Let a character that the terminal's encoding lacks be written out, and a stream that was closed take nothing.

    The next file to be opened would get its number, and what a library prints there, such as OpenMP, would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  while the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_asking() -> bool:
    """Return whether somebody is at a terminal, who can be asked; standard input may be closed."""
    return sys.stdin is not None and sys.stdin.isatty()


def say(line: str, file: TextIO | None = None) -> None:
    """Print one line, on standard output unless `file` is another, with all control characters written out."""
    write(escape(line), file or sys.stdout)


def write(text: str, stream: TextIO) -> None:
    """Write a text and a newline at once. If standard error takes nothing (a full disk, a reader that is gone), the
    work goes on: nobody can be told. Raises OSError if another stream does not.
    """
    try:
        print(text, file=stream, flush=True)
    except OSError:
        if stream is not sys.stderr:
            raise
        drop(stream)


def drop(stream: TextIO) -> None:
    """Let what the stream holds go nowhere, and all that comes: else Python would try again at its end, and exit with
    a code of its own.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def say_progress(line: str) -> None:
    """Print one line of what goes on, on standard error; on a terminal, words that do not fit go to the next line."""
    if not sys.stderr.isatty():
        say(line, sys.stderr)
        return
    width = shutil.get_terminal_size().columns
    for part in textwrap.wrap(escape(line), width, subsequent_indent="  ") or [""]:
        say(part, sys.stderr)


def say_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that nobody expected, as Python's `sys.excepthook` does."""
    for part in traceback.format_exception(kind, error, trace):
        for line in indent(part):
            say(line, sys.stderr)


class PlainFormatter(logging.Formatter):
    """Writes the control characters of log lines out."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """Return the record's message in one line."""
        return escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        """Return the error's lines."""
        return "\n".join(map(escape, indent(super().formatException(ei))))


class _StandardError(logging.Handler):
    """Writes to what standard error is now: a progress bar replaces it, and keeps below what is written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's lines."""
        try:
            write(self.format(record), sys.stderr)
        except Exception:  # noqa: BLE001 - as every handler does: what cannot be logged ends nothing
            self.handleError(record)


def log_plainly(level: int = logging.WARNING) -> None:
    """Let the log of all modules from that level on appear on standard error."""
    handler = _StandardError()
    handler.setFormatter(PlainFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for library in ("httpx", "botocore"):  # else they tell of each request that we make, and where its keys are from
        logging.getLogger(library).setLevel(max(level, logging.WARNING))


def indent(text: str) -> list[str]:
    """Return the text's lines, of which none but the first begins where a line of ours would."""
    first, *more = text.rstrip("\n").split("\n")
    return [first, *(f"  {line}" for line in more)]


def escape(line: str) -> str:
    """Return the line with all control characters written out."""
    from ptpipeline.foreign import escape_controls

    return escape_controls(line)
