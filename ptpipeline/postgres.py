"""Connections to PostgreSQL that end if no answer comes in time. The bounds that a server is asked for do not help if
it stopped, if a firewall drops what it sends, or if it says something else without end.
"""

from collections.abc import Callable
from typing import Any

import psycopg


def connect_in_time(seconds: float) -> Callable[..., Any]:
    """Return how an engine of SQLAlchemy connects (its event `do_connect`), so that each statement raises
    OperationalError if it takes longer than `seconds`.
    """

    class Punctual(psycopg.Connection[Any]):
        def wait(self, *arguments: Any, **options: Any) -> Any:
            try:
                return super().wait(*arguments, **{"timeout": seconds, **options})
            except psycopg.errors._WaitTimeout:
                self.pgconn.finish()  # else the rollback would wait for the same server
                raise psycopg.OperationalError(f"no answer within {seconds:.0f} s") from None

    def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
        return Punctual.connect(*arguments, **options)

    return connect
