"""How the progress of long work is shown."""

import sys

from flows.cli.terminal import say_progress
from ptpipeline.progress import Display, Lines


def choose_display() -> Display:
    """Return a bar on a terminal, else lines."""
    if not sys.stderr.isatty():
        return Lines(say_progress)
    from flows.cli.bar import Bar

    return Bar()
