"""How a PostgreSQL server is reached: where its address says, whatever the environment holds of another one; and left,
if no answer comes in time.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

# What libpq says of its settings, before any server is asked: no second try reads them otherwise.
_WRONG_SETTING = re.compile(
    r'definition of service "[^"]*" not found|service file "[^"]*" not found|syntax error in service file "[^"]*"'
    r'|invalid \w+ value: "[^"]*"|root certificate file "[^"]*" does not exist'
)
UNSET = "correct the address, or unset the PG* variable that says so"


def connect_arguments(host: str | None, query: Mapping[str, Any], seconds: int, options: str) -> dict[str, Any]:
    """Return what libpq is told beside an address: how long to wait, and options, which count before the address's.

    host, query: of the address, as SQLAlchemy parses it; a value of the query is a text, or several.

    An empty `hostaddr`, because libpq would take that of PGHOSTADDR, and send the login of this server to that one.
    """
    own = query.get("options", "")
    given = " ".join([*([own] if isinstance(own, str) else own), options])  # of two settings, the last counts
    found = {} if "hostaddr" in query or not host else {"hostaddr": ""}
    return {"connect_timeout": seconds, "options": given, **found}


def find_wrong_setting(said: str) -> str | None:
    """Return what libpq says of a setting that is none, of the address or of a PG* variable; None if it says none."""
    found = _WRONG_SETTING.search(said)
    return found[0] if found else None


def connect_in_time(seconds: float) -> Callable[..., Any]:
    """Return how an engine of SQLAlchemy connects (its event `do_connect`), so that each statement raises
    OperationalError if it takes longer than `seconds`.

    The bounds that a server is asked for do not help if it stopped, if a firewall drops what it sends, or if it says
    something else without end.
    """
    import psycopg

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
