"""Log lines of flow runs and of the stack's servers, which people read in a terminal or on a page of Prefect.

Reasons, labels and names of objects in them are other people's words. `ptp` writes its own lines by `cli.terminal`.
"""

import logging

from ptpipeline.errors import OWN_PACKAGES
from ptpipeline.foreign import escape_controls


class PlainRecord(logging.LogRecord):
    """A record of our loggers whose message is one line, with all control characters written out."""

    def getMessage(self) -> str:  # noqa: N802  logging's name
        """Return the message."""
        message = super().getMessage()
        return escape_controls(message) if self.name.partition(".")[0] in OWN_PACKAGES else message


def write_plainly() -> None:
    """Let all handlers of this process, Prefect's too, get such records."""
    logging.setLogRecordFactory(PlainRecord)
