"""From source columns to checked rows: labels, which rows each ingest check concerns, and the split of each row."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress

from ptpipeline.data.checks import CheckLog
from ptpipeline.data.clusters import KEPT_FIRST, Clusters, cluster_texts, find_near_overlaps, record_clusters
from ptpipeline.data.labels import Labels
from ptpipeline.data.near import is_blank
from ptpipeline.data.reencoded import describe_reencoded, find_reencoded
from ptpipeline.data.rows import BETWEEN, Built, CheckedRows, Columns, split_of
from ptpipeline.data.sources import SourceRows
from ptpipeline.data.table import is_utf8, show_name
from ptpipeline.errors import DataError
from ptpipeline.records.data import Split
from ptpipeline.task.data import Binned, Data
from ptpipeline.task.task import Task

REPLACEMENT = "\ufffd"
_SURROGATE = re.compile("[\ud800-\udfff]")

# What pandas, R, databases and sheets write for a missing value, if a text is to hold it.
MISSING = frozenset(
    ("nan", "NaN", "NA", "N/A", "n/a", "null", "NULL", "None", "\\N", "<NA>", "NaT", "#N/A", "(null)", "undefined")
)
_MAX_TOLD = 5  # values of a split column that a message lists


def check_rows(task: Task, source: SourceRows) -> CheckedRows:
    """Return the labelled rows of a task that pass its checks, each with the split that it belongs to.

    Raises DataError if a check whose policy is `block` finds rows, if a group value is missing, or if no row is left.
    """
    log = CheckLog(task.data, source.source, source.places)
    _check_groups(source, log)
    columns = Columns.of(source)
    rows = _drop_unlisted(source, log)
    if source.misquoted:
        rows = log.drop("quotes", rows, {number - 1 for number in source.misquoted}, fix=_advise_quotes(task))
    rows = _drop_unreadable(task, columns, rows, log)
    checks = task.data.checks
    near = Clusters({}, set())
    if checks.near_duplicate != "off":
        near = cluster_texts(columns, rows, checks.near_fields)
    rows = _set_targets(columns, rows) if task.generate else _set_labels(columns, rows, Labels(task, source), log)
    _place(columns, rows, near, task.data)
    alone = bool(task.data.given)  # a given test row stays, whatever the training rows hold
    rows = log.drop("duplicate", rows, _find_duplicates(columns, rows, alone))
    rows = log.drop("conflicting_label", rows, _find_conflicts(columns, rows, alone))
    rows = log.drop("split_overlap", rows, _find_overlaps(columns, rows))
    if source.groups is None and not task.data.given:
        record_clusters(columns, rows, near, task.data.split, log)
    else:
        rows = log.drop("near_duplicate", rows, find_near_overlaps(columns, rows, near))
        if templated := sum(columns.normals[row] in near.templated for row in rows):
            log.note("template", templated, "rows of a template, too many to be compared between splits, stay")
    if not rows:
        raise DataError(
            f"{source.source}: no row is left after the checks: {log.describe()}; see data.checks and data.label of "
            f"task {task.name}"
        )
    if not task.generate:
        _check_labels(Counter((columns.splits[row], columns.labels[row]) for row in rows), task.labels, log)
    return CheckedRows(Built(columns.build, rows), log.checks)


def check_labels_again(task: Task, source: SourceRows, checked: CheckedRows) -> CheckedRows:
    """Return the rows with their check `rows_per_label` made again, after some were left out.

    Raises DataError if that finds too few rows of a label and its policy is `block`.
    """
    log = CheckLog(task.data, source.source, source.places)
    log.checks += [check for check in checked.checks if check.name != "rows_per_label"]
    if not task.generate:
        _check_labels(Counter((row.split, row.label) for row in checked.rows), task.labels, log)
    return CheckedRows(checked.rows, log.checks)


def _check_groups(source: SourceRows, log: CheckLog) -> None:
    """Raise DataError for an empty group; tell of one whose name is what programs write for a missing value."""
    if source.groups is None:
        return
    if missing := [number for number, value in enumerate(source.groups, 1) if value is None or is_blank(value)]:
        raise DataError(
            f"{source.source}: the column that data.split.group names is empty in {source.places.describe(missing)}; "
            "every row needs a group"
        )
    for word in sorted(MISSING.intersection(filter(None, source.groups))):
        rows = [row for row, value in enumerate(source.groups) if value == word]
        if len(rows) > 1:
            log.note(
                "missing_group",
                len(rows),
                f"{log.describe_rows(rows)} have the group '{word}', as a missing value is written; they stay "
                "together; leave the cell empty if it is one, and give each such row a group of its own",
            )


def _drop_unlisted(source: SourceRows, log: CheckLog) -> list[int]:
    """All rows but those whose value of the split column is in no list: these are left out, and told."""
    rows = range(len(source.labels))
    if source.splits is None:
        return list(rows)
    count = sum(source.unlisted.values())
    shown = list(source.unlisted.items())[:_MAX_TOLD]
    values = ", ".join(f"{show_name(value) if value else 'no value'} {number}" for value, number in shown)
    more = f" and {len(source.unlisted) - _MAX_TOLD} more values" if len(source.unlisted) > _MAX_TOLD else ""
    log.note("unlisted_split", count, f"rows of no listed split are left out: {values}{more}" if count else "")
    return list(compress(rows, (split is not None for split in source.splits)))


def _advise_quotes(task: Task) -> str:
    if tsv := [split for split, source in task.data.sources.items() if source.format == "tsv"]:
        place = "data.source" if tsv[0] is None else f"data.source.{tsv[0]}"
        fix = f'set {place}.format: csv and {place}.delimiter: "\\t"'
    else:
        fix = "close the quote that opens there"
    return f"{fix}; if the texts are right, set data.checks.quotes to off"


def _drop_unreadable(task: Task, columns: Columns, rows: list[int], log: CheckLog) -> list[int]:
    """The rows that pass the checks `encoding` and `empty_text`; if a check is off, U+FFFD stands for each byte that
    was not UTF-8.
    """
    targets = [label or "" for label in columns.labels] if task.generate else None
    broken = {
        row for row in rows if not all(map(is_utf8, columns.write(row))) or (targets and not is_utf8(targets[row]))
    }
    rows = log.drop("encoding", rows, broken)
    for row in broken.intersection(rows):
        columns.replace(row, lambda text: _SURROGATE.sub(REPLACEMENT, text))
    _tell_reencoded([*columns.fields.values(), *([targets] if targets else [])], rows, log)
    empty = {
        row
        for row in rows
        if any(map(is_blank, columns.normals[row].split(BETWEEN)))
        or (task.generate and is_blank(columns.labels[row] or ""))
    }
    return log.drop("empty_text", rows, empty)


def _tell_reencoded(fields: Iterable[Sequence[str]], rows: Sequence[int], log: CheckLog) -> None:
    """Tell of texts that were encoded twice. Their rows stay: what they say is damaged, and what they are is not."""
    for texts in fields:
        if (found := find_reencoded([texts[row] for row in rows])) is not None:
            where = log.describe_rows(rows[index] for index in found.texts)
            log.note("encoded_twice", len(found.texts), f"texts ({where}) stay, and {describe_reencoded(found)}")


# ---------------------------------------------------------------- labels and splits


def _set_labels(columns: Columns, rows: list[int], named: Labels, log: CheckLog) -> list[int]:
    """Put the label's name in place of each cell, and return the rows that have one."""
    unknown, outside = dict[int, str | None](), set[int]()
    for row in rows:
        cell = columns.labels[row]
        label = named.find(cell)
        if label is None:
            unknown[row] = cell
        elif label == "":
            outside.add(row)
        columns.labels[row] = label
    if isinstance(named.rule, Binned):
        rows = [row for row in rows if row not in outside]
        log.note("outside_bins", len(outside), "rows in no bin are left out, as data.label.bins says", expected=True)
    found = named.describe(unknown.values()) if unknown else ""
    if unknown and log.policy("unknown_label") == "off":  # a row without a label cannot be kept
        raise DataError(
            f"{log.source}: {len(unknown)} rows have no label of the task ({log.describe_rows(unknown)}): {found}; "
            "data.checks.unknown_label: off cannot keep them, warn leaves them out"
        )
    known = {columns.labels[row] for row in rows}
    fix = named.advise(unknown.values(), {label for label in known if label}) if unknown else ""
    return log.drop("unknown_label", rows, set(unknown), found, fix)


def _set_targets(columns: Columns, rows: list[int]) -> list[int]:
    """Leave the target texts as they stand in the source."""
    for row in rows:
        columns.labels[row] = columns.labels[row] or ""
    return rows


def _place(columns: Columns, rows: Sequence[int], near: Clusters, data: Data) -> None:
    """Give each row its split: what the source states as training rows, or does not state, is cut by hash."""
    cut = data.cut
    for row in rows:
        if columns.splits[row] == "train":
            normal = columns.normals[row]
            key = near.representatives.get(normal, normal) if columns.groups is None else columns.groups[row]
            columns.splits[row] = split_of(key, cut)


# ---------------------------------------------------------------- which rows a check concerns


def _find_duplicates(columns: Columns, rows: Sequence[int], alone: bool) -> set[int]:
    """All but the first of the rows with the same normalised text and label, or target; `alone`: of each split."""
    first: dict[tuple[str, str | None, bool | Split], int] = {}
    normals, labels, splits = columns.normals, columns.labels, columns.splits
    return {row for row in rows if first.setdefault((normals[row], labels[row], alone and splits[row]), row) != row}


def _find_conflicts(columns: Columns, rows: Sequence[int], alone: bool) -> set[int]:
    """Every row whose normalised text has two labels or two targets: neither can be trusted; `alone`: in its split."""
    first: dict[tuple[str, bool | Split], str | None] = {}
    normals, labels, splits = columns.normals, columns.labels, columns.splits
    texts = [(normals[row], alone and splits[row]) for row in rows]
    pairs = zip(texts, (labels[row] for row in rows), strict=True)
    doubtful = {text for text, label in pairs if first.setdefault(text, label) != label}
    return {row for text, row in zip(texts, rows, strict=True) if text in doubtful}


def _find_overlaps(columns: Columns, rows: Sequence[int]) -> set[int]:
    """Rows whose normalised text also stands in a split that keeps it first: test, then reserve, dev and train."""
    keepers: dict[str, Split] = {}
    for row in rows:
        split = columns.splits[row]
        keepers[columns.normals[row]] = min(split, keepers.get(columns.normals[row], split), key=KEPT_FIRST.index)
    return {row for row in rows if columns.splits[row] != keepers[columns.normals[row]]}


def _check_labels(counts: Mapping[tuple[str, str | None], int], labels: Iterable[str], log: CheckLog) -> None:
    """Record the check `rows_per_label`. counts: the rows of each split and label."""
    required = {"train": log.data.checks.min_rows_per_label, "dev": 1, "test": 1}
    if log.data.split.reserve:
        required["reserve"] = 1
    short = {
        (label, split): f"{label} has {counts.get((split, label), 0)} of at least {required[split]} rows in {split}"
        for label in labels
        for split in required
        if counts.get((split, label), 0) < required[split]
    }
    if not short or log.policy("rows_per_label") == "off":
        log.record("rows_per_label", 0, "")
        return
    cut = sorted({split for _, split in short} - {"train"} - log.data.given)
    share = f", raise the share of {' and '.join(cut)} (data.split)" if cut else ""
    before = f"; checks before this one: {found}" if (found := log.describe()) else ""
    log.record("rows_per_label", len(short), "; ".join(short.values()) + before, f"give more rows{share}")
