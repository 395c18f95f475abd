"""The clocks of a ledger: the calendar of its database's machine, by which machines compare; and of a SQLite file the
seconds since this machine was started, which nobody can set and which sleep does not stop. All processes that share
such a file run on one machine.
"""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Table, func, select, text

from ptpipeline.records.base import now

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


def read_time(connection: Connection) -> str:
    """Return the time in UTC by the clock of the database's machine, as `now` writes it: what one machine writes and
    another one compares must not depend on the clock of either.
    """
    if connection.dialect.name == "sqlite":  # the file's machine is this one
        return now()
    told: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return told.astimezone(UTC).isoformat()


def time_after(connection: Connection, table: Table, *rows: ColumnElement[bool]) -> str:
    """Return the time now, or just after the newest of those rows if a clock that was ahead wrote it: which of them is
    newest must not depend on whose clock is right.
    """
    newest = connection.scalar(select(func.max(table.c.at)).where(*rows))
    return time_behind(connection, newest) if newest else read_time(connection)


def time_behind(connection: Connection, earlier: str) -> str:
    """Return the time now, or just after `earlier` if that lies in the future by the database's clock."""
    told = read_time(connection)
    return told if earlier < told else (datetime.fromisoformat(earlier) + timedelta(microseconds=1)).isoformat()
