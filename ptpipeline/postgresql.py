"""How a PostgreSQL server is reached: where its address says, whatever the environment holds of another one."""

import re
from collections.abc import Mapping
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
