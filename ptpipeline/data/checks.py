"""The record of the ingest checks: a check that finds rows blocks the run, warns and leaves the rows out, or is off.

Messages give counts and the places of rows, lines of a text file or numbers of table rows, never texts.
"""

import logging
from collections.abc import Iterable
from typing import Any

from ptpipeline.data.table import JoinedPlaces, Places
from ptpipeline.errors import DataError
from ptpipeline.foreign import escape_controls
from ptpipeline.records.data import DataCheck
from ptpipeline.task.data import Data

_MEANING = {
    "quotes": "a quote that was never closed, so that one row swallows others, and the quotes of a csv in a tsv",
    "encoding": "bytes that are not UTF-8",
    "empty_text": "a field without text, or no target",
    "unknown_label": "a label that is neither in the task's `labels` nor in its bins",
    "duplicate": "a text that came before under the same label or target",
    "conflicting_label": "a text that stands under two labels or targets",
    "split_overlap": "a text that also stands in another split",
    "near_duplicate": "texts that differ from another in little more than punctuation",
    "rows_per_label": "too few rows",
}
_OVERLAPS = ("split_overlap", "near_duplicate")

FIX = "correct the source"

log = logging.getLogger(__name__)


class CheckLog:
    """Applies the policy of each check and records its result, in the order of the checks; a row is known by its index
    in the source.
    """

    def __init__(self, data: Data, source: str, places: Places | JoinedPlaces) -> None:
        self.data = data
        self.source = source
        self.places = places
        self.checks: list[DataCheck] = []

    def policy(self, name: str) -> Any:
        """block, warn or off, as the task file says: between given splits, by `split.on_overlap`."""
        policy = getattr(self.data.checks, name)
        if policy != "off" and self._between_given(name):
            return "block" if self.data.split.on_overlap == "block" else "warn"
        return policy

    def _between_given(self, name: str) -> bool:
        return name in _OVERLAPS and bool(self.data.given)

    def describe_rows(self, rows: Iterable[int]) -> str:
        """Return the places of rows in words."""
        return self.places.describe(row + 1 for row in rows)

    def drop(self, name: str, rows: list[int], failing: set[int], found: str = "", fix: str = FIX) -> list[int]:
        """Return `rows` without the failing ones, or all of them if the check is off, or given splits keep them.

        found: what stands in these rows. fix: what to do about it.

        Raises DataError if rows fail and the policy is `block`.
        """
        if self.policy(name) == "off":
            self.record(name, 0, "")
            return rows
        keep = self._between_given(name) and self.data.split.on_overlap == "keep"
        kept = "; kept, as data.split.on_overlap says" if keep else ""
        detail = f"{self.describe_rows(failing)}{found and f': {found}'}{kept}" if failing else ""
        self.record(name, len(failing), detail, fix)
        if keep:
            return rows
        return [row for row in rows if row not in failing]

    def record(self, name: str, count: int, detail: str, fix: str = FIX) -> None:
        """Record the result of one check; raises DataError if it found rows and its policy is `block`."""
        policy, detail = self.policy(name), escape_controls(detail)
        outcome = {"off": "off", "warn": "warned"}.get(policy, "blocked") if count or policy == "off" else "ok"
        check = DataCheck.model_validate(
            {"name": name, "policy": policy, "count": count, "outcome": outcome, "detail": detail}
        )
        if outcome == "blocked":
            lever = (
                "data.split.on_overlap to drop_train" if self._between_given(name) else f"data.checks.{name} to warn"
            )
            raise DataError(
                f"{self.source}: check {name} found {count}: {detail}; it looks for {_MEANING[name]}; {fix}, "
                f"or set {lever}"
            )
        if outcome == "warned":
            log.warning("%s: check %s found %d: %s", self.source, name, count, detail)
        self.checks.append(check)

    def describe(self) -> str:
        """Return in words what the checks so far have found."""
        found = [check for check in self.checks if check.count]
        return ", ".join(
            f"{check.name} found {check.count} ({_MEANING.get(check.name, 'left out')})" for check in found
        )

    def note(self, name: str, count: int, detail: str, expected: bool = False) -> None:
        """Record rows that are left out because the task file says so; a count that is not expected is told."""
        told, detail = count > 0 and not expected, escape_controls(detail)
        if told:
            log.warning("%s: %s: %d %s", self.source, name, count, detail)
        self.checks.append(
            DataCheck(name=name, policy="warn", count=count, outcome="warned" if told else "ok", detail=detail)
        )
