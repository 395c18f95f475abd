"""`ptp`: parse, call, print. Heavy imports stay inside the verbs, so that `--help` answers at once.

Exit codes: 0 done; 1 the input or the state of things forbids it; 2 wrong usage; 3 a server does not answer, try again;
4 the answer is no (a candidate failed its gate, doctor found differences).
"""

import logging
import os
import sys
from collections.abc import Iterable

from flows.cli import drafting, stack, work  # noqa: F401  (importing a module adds its verbs, in the order of the help)

# isort: split
from flows.cli import quality, versions  # noqa: F401

# isort: split
from flows.cli import approvals  # noqa: F401

# isort: split
from flows.cli import alarms, deploying, maintenance, nights, serving  # noqa: F401
from flows.cli.app import FAILED, UNANSWERED, app
from flows.cli.terminal import PlainFormatter, drop, prepare_streams, say, say_traceback
from ptpipeline.errors import PtpError, Transient
from ptpipeline.interpreter import check_interpreter, explain
from ptpipeline.private import private_files


def run(arguments: list[str] | None) -> None:
    """Run the verb, and write out all that it printed while an error of that can still be told."""
    try:
        app(arguments)
    finally:
        try:
            sys.stdout.flush()
        except OSError as error:
            drop(sys.stdout)
            if isinstance(error, BrokenPipeError):  # whoever read it has seen enough, as `head` has
                raise SystemExit(FAILED) from None
            raise


def main(arguments: Iterable[str] | None = None) -> None:
    """Run `ptp`; print an error of ptpipeline as one line on standard error, and exit with its code.

    What it writes, and what it starts, is its user's alone: texts, logs and reports are private.
    """
    sys.excepthook = say_traceback
    prepare_streams()
    if logging.lastResort:  # where warnings go while nobody has asked for a log
        logging.lastResort.setFormatter(PlainFormatter())
    logging.getLogger("stamina").setLevel(logging.ERROR)  # what it says of a retry names neither server nor reason
    try:
        check_interpreter()
        with private_files():
            run(list(arguments) if arguments is not None else None)
    except PtpError as error:
        say(f"error: {error}", sys.stderr)
        sys.exit(UNANSWERED if isinstance(error, Transient) else FAILED)
    except Exception as error:
        if (told := _explain(error)) is None:
            raise
        say(f"error: {told}", sys.stderr)
        sys.exit(FAILED)


def _explain(error: Exception) -> str | None:
    """Return what to say of an error that no verb expected; None if it is a defect, of which all has to be said."""
    if told := explain(error):
        return str(told)
    if isinstance(error, OSError):  # of a file, of the disk, or of where its output goes
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{place}{error.strerror or type(error).__name__}"
    return None
