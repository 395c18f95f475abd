"""The words of other people in a run's table: Prefect renders its cells as Markdown, so they are escaped there."""

from collections.abc import Callable
from typing import Any

from registry.card.markdown import escape, unescape

_QUOTING = ("reason", "plan")  # columns that may quote rows, labels and errors


def escape_words(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table as Prefect is given it."""
    return _change(row, escape)


def unescape_words(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of Prefect's table as it was before `escape_words`."""
    return _change(row, unescape)


def _change(row: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    return row | {name: change(row[name]) for name in _QUOTING if isinstance(row.get(name), str)}
