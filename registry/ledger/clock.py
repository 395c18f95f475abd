"""The clock of a SQLite ledger: seconds since this machine was started, which nobody can set and which sleep does not
stop. All processes that share such a file run on one machine.
"""

import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the former is Linux's


def uptime() -> float:
    """Return the seconds since this machine was started."""
    return time.clock_gettime(_CLOCK)


def boot_id() -> str | None:
    """Return the name of this start of the machine, None if the system gives it none."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None
