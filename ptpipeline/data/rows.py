"""From source columns to checked rows: labels, which rows each ingest check concerns, and the split of each row."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from ptpipeline.data.checks import CheckLog
from ptpipeline.data.labels import Labels
from ptpipeline.data.near import find_representatives
from ptpipeline.data.near import normalise as normalise
from ptpipeline.data.sources import SourceRows
from ptpipeline.data.table import is_utf8
from ptpipeline.errors import DataError
from ptpipeline.foreign import escape_controls
from ptpipeline.records.data import DataCheck, Split
from ptpipeline.task.data import Binned, Data, SplitSpec
from ptpipeline.task.task import Task
from ptpipeline.task.template import Fields

_BETWEEN = "\x1f"  # no normalised text holds it, so words do not pass from one field to the next
REPLACEMENT = "\ufffd"
_SURROGATE = re.compile("[\ud800-\udfff]")

# A larger cluster, in rows and in its share of the distinct texts, is a template: it would unbalance the splits.
MAX_CLUSTER, MAX_CLUSTER_SHARE = 10, 0.05

_MAX_TOLD = 5  # values of a split column that a message lists

_KEPT_FIRST: tuple[Split, ...] = ("test", "reserve", "dev", "train")


class Row(NamedTuple):
    """One example; `id` is the first 16 hex digits of the sha256 of its normalised text, with -2, -3... for repeats.

    `fields` has the text of each field of the template: most tasks have `text` alone.
    `label` is the name of a label, or the target text of a generation task; `slices` are its values of `data.slices`.
    """

    id: str
    fields: Fields
    label: str
    slices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that a person wrote: the fields in the order of their names, one a line."""
        return join_fields(self.fields)


class CheckedRow(NamedTuple):
    """One labelled row: its number in the source from 1, and the normalised text that identifies it."""

    number: int
    fields: Fields
    normal: str
    label: str
    split: Split
    slices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As `Row.text`."""
        return join_fields(self.fields)


class CheckedRows(NamedTuple):
    """The rows that passed, in source order, and the record of every check."""

    rows: list[CheckedRow]
    checks: list[DataCheck]


class _SourceRow(NamedTuple):
    """One row before its label is known; the hash of `key` decides its split."""

    number: int
    fields: Fields
    normal: str
    raw_label: str | None
    key: str
    slices: tuple[str, ...] = ()
    given: Split | None = None


def join_fields(fields: Fields) -> str:
    """Return the fields in the order of their names, one a line."""
    return "\n".join(fields[name] for name in sorted(fields))


def normalise_fields(fields: Fields) -> str:
    """Return what identifies a row: each field normalised, in the order of their names."""
    return _BETWEEN.join(normalise(fields[name]) for name in sorted(fields))


def split_of(key: str, spec: SplitSpec) -> Split:
    """Return the split of all rows with this normalised text or group value: by hash alone, never by label.

    A reserve is cut out of what would be train, so no other row moves.
    """
    share = int(hashlib.sha256(f"{spec.seed}:{key}".encode(errors="surrogatepass")).hexdigest()[:13], 16) / 16**13
    test, dev = spec.share("test"), spec.share("dev")
    if share < test:
        return "test"
    if share < test + dev:
        return "dev"
    return "reserve" if share < test + dev + spec.reserve else "train"


def _place(row: _SourceRow, spec: SplitSpec) -> Split:
    """The split that the source gives a row; what it does not give is cut by hash."""
    return row.given if row.given not in (None, "train") else split_of(row.key, spec)


def check_rows(task: Task, source: SourceRows) -> CheckedRows:
    """Return the labelled rows of a task that pass its checks, each with the split that it belongs to.

    Raises DataError if a check whose policy is `block` finds rows, if a group value is missing, or if no row is left.
    """
    log = CheckLog(task.data, source.source, source.places)
    numbered = _drop_unlisted(source, _number_rows(source), log)
    if source.misquoted:
        numbered = log.drop("quotes", numbered, set(source.misquoted), fix=_advise_quotes(task))
    unlabelled = _drop_unreadable(task, numbered, log)
    near = _cluster_texts(task, unlabelled)
    if source.groups is None:
        known = near.representatives
        unlabelled = [row._replace(key=known[row.normal]) if row.normal in known else row for row in unlabelled]
    rows = _add_targets(task, unlabelled) if task.generate else _add_labels(task, unlabelled, Labels(task, source), log)
    alone = bool(task.data.given)  # a given test row stays, whatever the training rows hold
    rows = log.drop("duplicate", rows, _duplicates(rows, alone))
    rows = log.drop("conflicting_label", rows, _conflicts(rows, alone))
    rows = log.drop("split_overlap", rows, _overlaps(rows))
    if source.groups is None and not task.data.given:
        _record_clusters(task, rows, near, log)
    else:
        rows = log.drop("near_duplicate", rows, _near_overlaps(rows, near))
        if templated := sum(row.normal in near.templated for row in rows):
            log.note("template", templated, "rows of a template, too many to be compared between splits, stay")
    if not rows:
        raise DataError(
            f"{source.source}: no row is left after the checks: {log.describe()}; see data.checks and data.label of "
            f"task {task.name}"
        )
    if not task.generate:
        shortages = [] if log.policy("rows_per_label") == "off" else _shortages(rows, task.labels, task.data)
        log.record("rows_per_label", len(shortages), "; ".join(shortages))
    return CheckedRows(rows, log.checks)


def _number_rows(source: SourceRows) -> list[_SourceRow]:
    groups = source.groups if source.groups is not None else [None] * len(source.labels)
    if source.groups is not None and (missing := [n for n, value in enumerate(groups, 1) if not value]):
        raise DataError(
            f"{source.source}: the column that data.split.group names is empty in {source.places.describe(missing)}; "
            "every row needs a group"
        )
    names = list(source.fields)
    texts = [
        dict(zip(names, (text or "" for text in values), strict=True))
        for values in zip(*source.fields.values(), strict=True)
    ]
    normals = [normalise_fields(fields) for fields in texts]
    keys = normals if source.groups is None else (group or "" for group in groups)
    slices, given = source.slices or [()] * len(texts), source.splits or [None] * len(texts)
    columns = zip(texts, normals, source.labels, keys, slices, given, strict=True)
    return [_SourceRow(number, *values) for number, values in enumerate(columns, 1)]


def _drop_unlisted(source: SourceRows, rows: list[_SourceRow], log: CheckLog) -> list[_SourceRow]:
    """The rows without those whose value of the split column is in no list: these are left out, and told."""
    if source.splits is None:
        return rows
    count = sum(source.unlisted.values())
    shown = list(source.unlisted.items())[:_MAX_TOLD]
    values = ", ".join(f"{escape_controls(value) or 'no value'} {number}" for value, number in shown)
    more = f" and {len(source.unlisted) - _MAX_TOLD} more values" if len(source.unlisted) > _MAX_TOLD else ""
    log.note("unlisted_split", count, f"rows of no listed split are left out: {values}{more}" if count else "")
    return [row for row in rows if row.given is not None]


def _advise_quotes(task: Task) -> str:
    if any(source.format == "tsv" for source in task.data.sources.values()):
        fix = 'set data.source.format: csv and data.source.delimiter: "\\t"'
    else:
        fix = "close the quote that opens there"
    return f"{fix}; if the texts are right, set data.checks.quotes to off"


def _drop_unreadable(task: Task, rows: list[_SourceRow], log: CheckLog) -> list[_SourceRow]:
    """The rows that pass the checks `encoding` and `empty_text`."""
    broken = {row.number for row in rows if not is_utf8(join_fields(row.fields) + _target(task, row))}
    rows = [_replace_bytes(row) if row.number in broken else row for row in log.drop("encoding", rows, broken)]
    empty = {
        row.number
        for row in rows
        if not all(row.normal.split(_BETWEEN)) or (task.generate and not _target(task, row).strip())
    }
    return log.drop("empty_text", rows, empty)


def _replace_bytes(row: _SourceRow) -> _SourceRow:
    """The row with U+FFFD for each byte that was not UTF-8; it is kept if the check is off."""
    fields = {name: _SURROGATE.sub(REPLACEMENT, text) for name, text in row.fields.items()}
    label, normal = _SURROGATE.sub(REPLACEMENT, row.raw_label or ""), normalise_fields(fields)
    return row._replace(fields=fields, normal=normal, raw_label=label, key=normal if row.key == row.normal else row.key)


# ---------------------------------------------------------------- labels


def _add_labels(task: Task, rows: list[_SourceRow], named: Labels, log: CheckLog) -> list[CheckedRow]:
    spec = task.data.cut
    labels = {row.number: named.find(row.raw_label) for row in rows}
    if isinstance(task.data.label, Binned):
        outside = {number for number, label in labels.items() if label == ""}
        rows = [row for row in rows if row.number not in outside]
        log.note("outside_bins", len(outside), "rows in no bin are left out, as data.label.bins says", expected=True)
    unknown = {row.number: row.raw_label for row in rows if labels[row.number] is None}
    found = named.describe(unknown.values()) if unknown else ""
    if unknown and log.policy("unknown_label") == "off":  # a row without a label cannot be kept
        raise DataError(
            f"{log.source}: {len(unknown)} rows have no label of the task ({log.places.describe(unknown)}): {found}; "
            "data.checks.unknown_label: off cannot keep them, warn leaves them out"
        )
    fix = named.advise(unknown.values(), {label for label in labels.values() if label}) if unknown else ""
    rows = log.drop("unknown_label", rows, set(unknown), found, fix)
    return [
        CheckedRow(row.number, row.fields, row.normal, labels[row.number] or "", _place(row, spec), row.slices)
        for row in rows
    ]


def _add_targets(task: Task, rows: list[_SourceRow]) -> list[CheckedRow]:
    """The rows of a generation task, with their target texts as they stand in the source."""
    return [
        CheckedRow(row.number, row.fields, row.normal, _target(task, row), _place(row, task.data.cut), row.slices)
        for row in rows
    ]


def _target(task: Task, row: _SourceRow) -> str:
    return row.raw_label or "" if task.generate else ""


# ---------------------------------------------------------------- which rows a check concerns


def _duplicates(rows: list[CheckedRow], alone: bool) -> set[int]:
    """All but the first of the rows with the same normalised text and label, or target; `alone`: of each split."""
    first: dict[tuple[str, str, bool | Split], int] = {}
    identities = ((row, (row.normal, row.label, alone and row.split)) for row in rows)
    return {row.number for row, identity in identities if first.setdefault(identity, row.number) != row.number}


def _conflicts(rows: list[CheckedRow], alone: bool) -> set[int]:
    """Every row whose normalised text has two labels or two targets: neither can be trusted; `alone`: in its split."""
    first: dict[tuple[str, bool | Split], str] = {}
    texts = [(row.normal, alone and row.split) for row in rows]
    doubtful = {text for text, row in zip(texts, rows, strict=True) if first.setdefault(text, row.label) != row.label}
    return {row.number for text, row in zip(texts, rows, strict=True) if text in doubtful}


def _overlaps(rows: list[CheckedRow]) -> set[int]:
    """Rows whose normalised text also stands in a split that keeps it first: test, then reserve, dev and train."""
    keepers: dict[str, Split] = {}
    for row in rows:
        keepers[row.normal] = min(row.split, keepers.get(row.normal, row.split), key=_KEPT_FIRST.index)
    return {row.number for row in rows if row.split != keepers[row.normal]}


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


class _Clusters(NamedTuple):
    """The representative of each text's cluster; the `templated` texts have none: their cluster is too large for one
    split.
    """

    representatives: dict[str, str]
    templated: set[str]


def _cluster_texts(task: Task, rows: list[_SourceRow]) -> _Clusters:
    """The clusters of all texts, even those that later checks drop for their labels: no split depends on a label."""
    if task.data.checks.near_duplicate == "off":
        return _Clusters({}, set())
    representatives = find_representatives(row.normal for row in rows)
    largest = max(MAX_CLUSTER, int(MAX_CLUSTER_SHARE * len({row.normal for row in rows})))
    sizes = Counter(representatives.values())
    templated = {normal for normal, representative in representatives.items() if sizes[representative] > largest}
    kept = {normal: one for normal, one in representatives.items() if normal not in templated}
    return _Clusters(kept, templated)


def _record_clusters(task: Task, rows: list[CheckedRow], near: _Clusters, log: CheckLog) -> None:
    """Record how many rows stand in the split of their cluster; their keys have put them there already."""
    together = {row.number for row in rows if row.normal in near.representatives}
    moved = sum(row.split != split_of(row.normal, task.data.split) for row in rows if row.number in together)
    templated = {row.number for row in rows if row.normal in near.templated}
    details = []
    if together:
        details.append(
            f"{log.places.describe(together)} share the split of what they nearly repeat, {moved} moved there"
        )
    if templated:
        details.append(
            f"{len(templated)} rows of a template, too many for one split, stay where their own text puts them"
        )
    log.record("near_duplicate", len(together | templated), "; ".join(details))


def _near_overlaps(rows: list[CheckedRow], near: _Clusters) -> set[int]:
    """Rows of groups with a near duplicate, another text, in a split that keeps it first: a group is not moved for one
    of its rows.
    """
    texts: dict[tuple[str, Split], set[str]] = defaultdict(set)
    for row in rows:
        texts[near.representatives.get(row.normal, row.normal), row.split].add(row.normal)
    return {
        row.number
        for row in rows
        if (representative := near.representatives.get(row.normal)) is not None
        and any(texts[representative, split] - {row.normal} for split in _KEPT_FIRST[: _KEPT_FIRST.index(row.split)])
    }
