"""Where a task's rows come from: a local file, or a member of a pinned package; and its columns that the task names."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptpipeline.data.files import load_file, source_name
from ptpipeline.data.table import Places, Wanted
from ptpipeline.errors import DataError
from ptpipeline.packages import Member, Packed, package_member
from ptpipeline.records.base import digest_of
from ptpipeline.task.data import Binned, Source
from ptpipeline.task.task import Task

# Part of every source key: raise it by one if the same source would give other rows.
INGEST_VERSION = 3

MAX_SLICE_VALUES = 50


class SourceRows(NamedTuple):
    """The columns of a source that a task names, equally long, in file order; `groups` is None without a group column.

    `labels` holds the targets of a generation task; `slices` has each row's values of the slice columns, and is empty
    if the task names none. `places` says where each row stands; `label_kinds` and `label_codes` are those of the column
    of labels, and `misquoted` is that of the table (data/table.py).
    """

    source: str
    texts: list[str | None]
    labels: list[str | None]
    groups: list[str | None] | None
    slices: Sequence[tuple[str, ...]] = ()
    places: Places = Places()
    label_kinds: tuple[str, ...] = ("text",)
    label_codes: Mapping[str, str] = {}
    misquoted: frozenset[int] = frozenset()


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
    data, name = task.data, source_name(task.data.source)
    label = data.label.column if isinstance(data.label, Binned) else data.label
    fields = {"text": data.text, "target": data.target, "label": label, "split.group": data.split.group}
    named = [
        Wanted(column, field, text=field in ("text", "target"))
        for field, column in fields.items()
        if column is not None
    ]
    wanted = [*named, *(Wanted(column, "slices") for column in data.slices)]
    table = load_file(_local_file(task, home), data.source, wanted)
    answers = table.columns[label or data.target or ""]
    group = table.columns[data.split.group].cells if data.split.group is not None else None
    slices = list(zip(*(_slice_values(name, one, table.columns[one].cells) for one in data.slices), strict=True))
    return SourceRows(
        name,
        table.columns[data.text].cells,
        answers.cells,
        group,
        slices,
        table.places,
        answers.kinds,
        answers.codes,
        table.misquoted,
    )


def _slice_values(name: str, column: str, cells: Iterable[str | None]) -> list[str]:
    """The cells, empty for a missing one; DataError if there are too many values to be kinds of rows."""
    values = [cell or "" for cell in cells]
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
