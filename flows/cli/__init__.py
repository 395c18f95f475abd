"""`ptp`: parse, call, print. Heavy imports stay inside the verbs, so that `--help` answers at once.

Exit codes: 0 done; 1 the input or the state of things forbids it; 2 wrong usage; 3 a server does not answer, try again;
4 the answer is no (a candidate failed its gate, doctor found differences).
"""

import logging
import sys
from collections.abc import Iterable

from flows.cli import work  # noqa: F401  (importing a module adds its verbs, in the order of the help)

# isort: split
from flows.cli import quality, versions  # noqa: F401

# isort: split
from flows.cli import maintenance  # noqa: F401
from flows.cli.app import FAILED, UNANSWERED, app
from flows.cli.terminal import PlainFormatter, say, say_traceback
from ptpipeline.errors import PtpError, Transient
from ptpipeline.private import private_files


def main(arguments: Iterable[str] | None = None) -> None:
    """Run `ptp`; print an error of ptpipeline as one line on standard error, and exit with its code.

    What it writes, and what it starts, is its user's alone: texts, logs and reports are private.
    """
    sys.excepthook = say_traceback
    if logging.lastResort:  # where warnings go while nobody has asked for a log
        logging.lastResort.setFormatter(PlainFormatter())
    try:
        with private_files():
            app(list(arguments) if arguments is not None else None)
    except PtpError as error:
        say(f"error: {error}", sys.stderr)
        sys.exit(UNANSWERED if isinstance(error, Transient) else FAILED)
