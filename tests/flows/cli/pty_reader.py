"""What a program writes to a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Typed(NamedTuple):
    """What a person types, once the terminal shows `after` and `meanwhile` was called."""

    text: str = ""
    after: str = ""
    meanwhile: Callable[[], None] = lambda: None


def watch_terminal(
    arguments: Sequence[str], environment: Mapping[str, str], columns: int | None = None, typed: Typed = Typed()
) -> tuple[int, str]:
    """The exit code of Python with these arguments, and all that its terminal gets, standard error included.

    columns: the terminal's width, if the environment does not say it.
    """
    ours, theirs = pty.openpty()
    if columns is not None:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=dict(environment)
    )
    os.close(theirs)
    seen, waits = b"", True
    while True:
        if waits and typed.after.encode() in seen:
            typed.meanwhile()
            os.write(ours, typed.text.encode())
            waits = False
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    return process.wait(), seen.decode()
