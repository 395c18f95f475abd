"""From source columns to checked rows: labels, the ingest checks, and the split that each row belongs to.

A check that finds rows either blocks the run, warns and leaves the rows out, or is off; each is counted. Messages
give counts and row numbers (the first data row is row 1), never texts.
"""

import hashlib
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from ptpipeline.data.near import normalised as normalised
from ptpipeline.data.near import representatives
from ptpipeline.data.sources import SourceRows
from ptpipeline.errors import DataError
from ptpipeline.records import DataCheck, Split
from ptpipeline.task.task import Binned, Data, SplitSpec, Task

REPLACEMENT = "\ufffd"
MAX_CLUSTER, MAX_CLUSTER_SHARE = (
    10,
    0.05,
)  # of the distinct texts: what more have in common is a template, and would tip the splits
_KEPT_FIRST: tuple[Split, ...] = ("test", "reserve", "dev", "train")

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One example; `id` is the first 16 hex digits of the sha256 of its normalised text, with -2, -3... for repeats.

    `label` is the name of a label, or the target text of a generation task; `slices` are its values of `data.slices`.
    """

    id: str
    text: str
    label: str
    slices: tuple[str, ...] = ()


class CheckedRow(NamedTuple):
    """One labelled row: its number in the source from 1, and the normalised text that identifies it."""

    number: int
    text: str
    normal: str
    label: str
    split: Split
    slices: tuple[str, ...] = ()


class CheckedRows(NamedTuple):
    """What passed, in source order, and the record of every check."""

    rows: list[CheckedRow]
    checks: list[DataCheck]


class _Found(NamedTuple):
    number: int
    text: str
    normal: str
    raw_label: Any
    key: str
    slices: tuple[str, ...] = ()


_Kind = TypeVar("_Kind", _Found, CheckedRow)


def split_of(key: str, spec: SplitSpec) -> Split:
    """The split of all rows with this normalised text or group value: by hash alone, never by label.

    A reserve is cut out of what would train, so that no other row moves.
    """
    share = int(hashlib.sha256(f"{spec.seed}:{key}".encode(errors="surrogatepass")).hexdigest()[:13], 16) / 16**13
    if share < spec.test:
        return "test"
    if share < spec.test + spec.dev:
        return "dev"
    return "reserve" if share < spec.test + spec.dev + spec.reserve else "train"


def check_rows(task: Task, source: SourceRows) -> CheckedRows:
    """The labelled rows of a task that pass its checks.

    Raises DataError where a check whose policy is `block` finds rows, where a group value is missing, or where no
    row is left.
    """
    book = _Book(task.data, source.source)
    found = _found_rows(source)
    found = book.without(
        "encoding", found, {row.number for row in found if REPLACEMENT in row.text + _target(task, row)}
    )
    empty = {row.number for row in found if not row.normal or (task.generate and not _target(task, row).strip())}
    found = book.without("empty_text", found, empty)
    near = _near_duplicates(task, found)
    if source.groups is None:
        found = [row._replace(key=near.speakers.get(row.normal, row.key)) for row in found]
    rows = _targeted(task, found) if task.generate else _labelled(task, found, book)
    rows = book.without("duplicate", rows, _duplicates(rows))
    rows = book.without("conflicting_label", rows, _conflicts(rows))
    rows = book.without("split_overlap", rows, _overlaps(rows))
    rows = (
        _noted(task, rows, near, book)
        if source.groups is None
        else book.without("near_duplicate", rows, _beside(rows, near))
    )
    if not rows:
        raise DataError(
            f"{source.source}: no row is left after the checks; see data.checks and data.label of task {task.name}"
        )
    if not task.generate:
        book.enough(rows, task.labels)
    return CheckedRows(rows, book.checks)


def _found_rows(source: SourceRows) -> list[_Found]:
    groups = source.groups if source.groups is not None else [None] * len(source.texts)
    if source.groups is not None and (missing := [n for n, value in enumerate(groups, 1) if value in (None, "")]):
        raise DataError(
            f"{source.source}: the column that data.split.group names is empty in {_numbered(missing)}; every "
            "row needs a group"
        )
    texts = [text or "" for text in source.texts]
    normals = [normalised(text) for text in texts]
    keys = normals if source.groups is None else map(str, groups)
    columns = zip(texts, normals, source.labels, keys, source.slices or [()] * len(texts), strict=True)
    return [_Found(number, *values) for number, values in enumerate(columns, 1)]


# ---------------------------------------------------------------- labels


def _labelled(task: Task, found: list[_Found], book: "_Book") -> list[CheckedRow]:
    rule, spec = task.data.label, task.data.split
    labels = {row.number: _label(row.raw_label, rule, task.labels) for row in found}
    if isinstance(rule, Binned):
        outside = {number for number, label in labels.items() if label == ""}
        found = [row for row in found if row.number not in outside]
        book.checks.append(
            DataCheck(
                name="outside_bins",
                policy="warn",
                count=len(outside),
                outcome="ok",
                detail="rows in no bin are left out, as data.label.bins says",
            )
        )
    unknown = {row.number for row in found if labels[row.number] is None}
    if unknown and book.policy("unknown_label") == "off":  # a row without a label cannot be kept
        raise DataError(
            f"{book.source}: {len(unknown)} rows have no label of the task ({_numbered(unknown)}); "
            "data.checks.unknown_label: off cannot keep them, warn leaves them out"
        )
    found = book.without("unknown_label", found, unknown)
    return [
        CheckedRow(row.number, row.text, row.normal, labels[row.number] or "", split_of(row.key, spec), row.slices)
        for row in found
    ]


def _targeted(task: Task, found: list[_Found]) -> list[CheckedRow]:
    """The rows of a generation task, with their target texts as they stand in the source."""
    return [
        CheckedRow(row.number, row.text, row.normal, _target(task, row), split_of(row.key, task.data.split), row.slices)
        for row in found
    ]


def _target(task: Task, row: _Found) -> str:
    return row.raw_label or "" if task.generate else ""


def _label(value: Any, rule: str | Binned | None, known: Iterable[str]) -> str | None:
    """The label of a cell; None where it is unknown, '' where its number lies in no bin."""
    if not isinstance(rule, Binned):
        return str(value) if value is not None and str(value) in known else None
    number = _number(value)
    if number is None:
        return None
    for label, (low, high) in rule.bins.items():
        if (low is None or number >= low) and (high is None or number <= high):
            return label
    return ""


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


# ---------------------------------------------------------------- which rows a check concerns


def _duplicates(rows: list[CheckedRow]) -> set[int]:
    """All but the first of the rows with the same normalised text and label, or target."""
    first: dict[tuple[str, str], int] = {}
    return {row.number for row in rows if first.setdefault((row.normal, row.label), row.number) != row.number}


def _conflicts(rows: list[CheckedRow]) -> set[int]:
    """Every row whose normalised text stands under two labels, or before two targets: neither can be trusted."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels[row.normal].add(row.label)
    return {row.number for row in rows if len(labels[row.normal]) > 1}


def _overlaps(rows: list[CheckedRow]) -> set[int]:
    """Rows whose normalised text also stands in a split that judges: test keeps it before dev, dev before train."""
    splits: dict[str, set[Split]] = defaultdict(set)
    for row in rows:
        splits[row.normal].add(row.split)
    keeper = {normal: next(split for split in _KEPT_FIRST if split in found) for normal, found in splits.items()}
    return {row.number for row in rows if row.split != keeper[row.normal]}


def _shortages(rows: list[CheckedRow], labels: Iterable[str], data: Data) -> list[str]:
    required: dict[Split, int] = {"train": data.checks.min_rows_per_label, "dev": 1, "test": 1}
    if data.split.reserve:
        required["reserve"] = 1
    counts = Counter((row.split, row.label) for row in rows)
    return [
        f"{label} has {counts[split, label]} of at least {required[split]} rows in {split}"
        for label in labels
        for split in required
        if counts[split, label] < required[split]
    ]


# ---------------------------------------------------------------- near duplicates


class _NearDuplicates(NamedTuple):
    """The text that speaks for a text's cluster; texts of a cluster too large for one split are `templated`, and have
    none.
    """

    speakers: dict[str, str]
    templated: set[str]


def _near_duplicates(task: Task, found: list[_Found]) -> _NearDuplicates:
    """Those among all texts, whatever later checks leave out by their labels: no split depends on a label."""
    if task.data.checks.near_duplicate == "off":
        return _NearDuplicates({}, set())
    speakers = representatives(row.normal for row in found)
    largest = max(MAX_CLUSTER, int(MAX_CLUSTER_SHARE * len({row.normal for row in found})))
    sizes = Counter(speakers.values())
    templated = {normal for normal, speaker in speakers.items() if sizes[speaker] > largest}
    return _NearDuplicates(
        {normal: speaker for normal, speaker in speakers.items() if normal not in templated}, templated
    )


def _noted(task: Task, rows: list[CheckedRow], near: _NearDuplicates, book: "_Book") -> list[CheckedRow]:
    """All of the rows, which are in the split of their cluster already; records how many that concerns."""
    together = {row.number for row in rows if row.normal in near.speakers}
    moved = sum(row.split != split_of(row.normal, task.data.split) for row in rows if row.number in together)
    alike = {row.number for row in rows if row.normal in near.templated}
    told = (
        [f"{_numbered(together)} share the split of what they nearly repeat, {moved} moved there"] if together else []
    )
    told += (
        [f"{len(alike)} rows of a template, too many for one split, stay where their own text puts them"]
        if alike
        else []
    )
    book.record("near_duplicate", len(together | alike), "; ".join(told))
    return rows


def _beside(rows: list[CheckedRow], near: _NearDuplicates) -> set[int]:
    """Rows of groups that nearly stand in a split kept first, under another text: a group is not moved for one row of
    it.
    """
    texts: dict[tuple[str, Split], set[str]] = defaultdict(set)
    for row in rows:
        texts[near.speakers.get(row.normal, row.normal), row.split].add(row.normal)
    return {
        row.number
        for row in rows
        if (speaker := near.speakers.get(row.normal)) is not None
        and any(texts[speaker, split] - {row.normal} for split in _KEPT_FIRST[: _KEPT_FIRST.index(row.split)])
    }


# ---------------------------------------------------------------- bookkeeping


_MEANING = {
    "encoding": "bytes that are not UTF-8",
    "empty_text": "no text, or no target",
    "unknown_label": "a label that the task's `labels` or bins do not name",
    "duplicate": "a text that came before under the same label or target",
    "conflicting_label": "a text that stands under two labels or targets",
    "split_overlap": "a text that stands in another split too",
    "near_duplicate": "texts that differ from another in little more than punctuation",
    "rows_per_label": "too few rows",
}


class _Book:
    """Applies the policy of each check and keeps its record, in the order of the checks."""

    def __init__(self, data: Data, source: str) -> None:
        self.data = data
        self.source = source
        self.checks: list[DataCheck] = []

    def policy(self, name: str) -> Any:
        """block, warn or off, as the task file says."""
        return getattr(self.data.checks, name)

    def without(self, name: str, rows: list[_Kind], concerned: set[int]) -> list[_Kind]:
        """`rows` without those of the concerned numbers, or all of them where the check is off; DataError on block."""
        if self.policy(name) == "off":
            self.record(name, 0, "")
            return rows
        self.record(name, len(concerned), _numbered(concerned) if concerned else "")
        return [row for row in rows if row.number not in concerned]

    def enough(self, rows: list[CheckedRow], labels: Iterable[str]) -> None:
        """Records whether every label has the rows it needs; counts shortages, leaves nothing out."""
        found = [] if self.policy("rows_per_label") == "off" else _shortages(rows, labels, self.data)
        self.record("rows_per_label", len(found), "; ".join(found))

    def record(self, name: str, count: int, detail: str) -> None:
        """One check's line; DataError where it found rows and its policy is block."""
        policy = self.policy(name)
        outcome = {"off": "off", "warn": "warned"}.get(policy, "blocked") if count or policy == "off" else "ok"
        check = DataCheck.model_validate(
            {"name": name, "policy": policy, "count": count, "outcome": outcome, "detail": detail}
        )
        if outcome == "blocked":
            raise DataError(
                f"{self.source}: check {name} found {count}: {detail}; it looks for {_MEANING[name]}; mend the "
                f"source, or set data.checks.{name} to warn"
            )
        if outcome == "warned":
            log.warning("%s: check %s found %d: %s", self.source, name, count, detail)
        self.checks.append(check)


def _numbered(numbers: Iterable[int]) -> str:
    """Up to three row numbers in words."""
    ordered = sorted(numbers)
    word = "row" if len(ordered) == 1 else "rows"
    return f"{word} {', '.join(map(str, ordered[:3]))}{' and more' if len(ordered) > 3 else ''}"
