"""Where a task's rows come from: a local file, or a member of a pinned package; and its columns that the task names."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptpipeline.data.files import list_columns, load_file, source_name
from ptpipeline.errors import DataError
from ptpipeline.packages import Member, Packed, package_member
from ptpipeline.records.base import digest_of
from ptpipeline.task.data import Binned, Source
from ptpipeline.task.task import Task

# Part of every source key: raise it by one if the same source would give other rows.
INGEST_VERSION = 2

MAX_SLICE_VALUES = 50
_TEXT_TYPES = ("string", "large_string", "string_view")


class SourceRows(NamedTuple):
    """The columns of a source that a task names, equally long, in file order; `groups` is None without a group column.

    `labels` holds the targets of a generation task; `slices` has each row's values of the slice columns as text, and is
    empty if the task names none.
    """

    source: str
    texts: list[str | None]
    labels: list[Any]
    groups: list[Any] | None
    slices: Sequence[tuple[str, ...]] = ()


def source_key(task: Task, home: Path) -> str:
    """Return a cheap identity of what ingest would read: if the key is unchanged, no new snapshot is needed.

    Covers the data settings, the labels' names, and the content: sha256 of the package's archive and the member, or
    size and sha256 of a local file. Raises DataError if the local file is missing, and what `package_member` raises if
    the task does not state the archive's sha256.
    """
    source, unset = task.data.source, {"target"} if task.data.target is None else set()
    if source.package is None:
        content = _file_identity(_local_file(task, home))
    else:  # name and version may be those of another archive tomorrow
        content = {"archive": source.sha256 or _package_member(source, home).sha256}
    settings = task.data.model_dump(mode="json", exclude=unset) | {
        "source": source.model_dump(mode="json", exclude={"sha256"} | ({"package"} if source.package else set()))
    }
    return digest_of({"ingest": INGEST_VERSION, "data": settings, "labels": sorted(task.labels), "content": content})


def read_rows(task: Task, home: Path) -> SourceRows:
    """Return the text, label (or target), group and slice columns of the task's source.

    Raises DataError if the file is missing, empty, malformed, lacks a column that the task names, or has a slice column
    of more than MAX_SLICE_VALUES distinct values; ServiceUnavailable if a package cannot be fetched.
    """
    source, name = task.data.source, source_name(task.data.source)
    path = _local_file(task, home)
    table = load_file(path, source, home)
    label = task.data.label.column if isinstance(task.data.label, Binned) else task.data.label
    group, texts = task.data.split.group, {"text": task.data.text, "target": task.data.target}
    named = {**texts, "label": label, "split.group": group}
    _check_columns(name, named, task.data.slices, table)
    _check_types(name, texts, table)
    answers = table[label or task.data.target]
    slices = list(zip(*(_slice_values(name, column, table[column]) for column in task.data.slices), strict=True))
    return SourceRows(
        name, list(table[task.data.text]), list(answers), None if group is None else list(table[group]), slices
    )


def _check_columns(name: str, named: Mapping[str, str | None], slices: Iterable[str], table: Any) -> None:
    """Raise DataError if the file lacks a column that a field of `data` names, or has no rows."""
    for field, column in [*named.items(), *(("slices", column) for column in slices)]:
        if column is not None and column not in table.column_names:
            there = list_columns(table.column_names)
            raise DataError(f"{name}: no column {column!r}, which data.{field} names; the columns are {there}")
    if len(table) == 0:
        raise DataError(f"{name}: the file has columns but no rows")


def _check_types(name: str, texts: dict[str, str | None], table: Any) -> None:
    for field, column in texts.items():
        kind = getattr(table.features[column], "dtype", "nested values") if column else "string"
        if kind not in _TEXT_TYPES:
            raise DataError(f"{name}: column {column!r}, which data.{field} names, holds {kind}; expected text")


def _slice_values(name: str, column: str, cells: Iterable[Any]) -> list[str]:
    """The cells as text, empty for a missing one; DataError if there are too many values to be kinds of rows."""
    values = ["" if cell is None or cell != cell else str(cell) for cell in cells]
    if (kinds := len(set(values))) > MAX_SLICE_VALUES:
        raise DataError(
            f"{name}: column {column!r}, which data.slices names, has {kinds} distinct values; a slice "
            f"column may have at most {MAX_SLICE_VALUES}; name a column with fewer, or leave it out"
        )
    return values


def _local_file(task: Task, home: Path) -> Path:
    source = task.data.source
    if source.package is not None:
        return _package_member(source, home).path
    path = Path(source.path or "").expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise DataError(
            f"data.source.path of task {task.name}: {path}: {what} (relative paths start at {Path.cwd()}); "
            f"expected a {source.format} file"
        )
    return path


def _package_member(source: Source, home: Path) -> Member:
    return package_member(Packed(str(source.package), str(source.member), source.sha256), home)


def _file_identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
