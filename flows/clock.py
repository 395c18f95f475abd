"""Whether this machine's clock is that of Prefect's server, which hears by it that a run lives.

A heartbeat carries the time of the machine that sends it, and the server holds it against its own. A run on a machine
that is a minute behind would be taken for dead while it works; of one that is ahead the death is noticed as much later.
"""

import logging
from datetime import UTC, datetime

from prefect.settings import PREFECT_API_URL

from flows.server.api import read_date
from ptpipeline.errors import ServiceUnavailable, SettingsError

MOST_SECONDS = 30.0  # behind: two heartbeats still arrive within the time after which silence is death

log = logging.getLogger("ptpipeline.flows")


def check_clock() -> None:
    """Raise SettingsError if this machine's clock is more than MOST_SECONDS off that of Prefect's server.

    A server that is away, or does not tell the time, is not asked again: nothing is known then.
    """
    api = PREFECT_API_URL.value()
    if not api:
        return
    asked = datetime.now(UTC)
    try:
        told = read_date(api)
    except ServiceUnavailable as error:
        log.warning("this machine's clock is not compared with that of Prefect's server: %s", error)
        return
    if told is None:
        return
    between = asked + (datetime.now(UTC) - asked) / 2
    ahead = (between - told).total_seconds() - 0.5  # it tells whole seconds
    if abs(ahead) > MOST_SECONDS:
        raise SettingsError(
            f"this machine's clock is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} that of Prefect's "
            "server, which would take this run for dead while it works, or notice its death too late; set it right "
            "(NTP), then run again"
        )
