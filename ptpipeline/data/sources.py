"""Reads a task's rows from a local file or a member of a pinned package, through `datasets`.

Text files are UTF-8; other bytes become U+FFFD, which the check `encoding` counts. Every csv and tsv column is read as
text, so that `001`, `NA` and `null` stay as they are in the file.
"""

import csv
import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptpipeline.data.parquet import count_rows
from ptpipeline.errors import DataError, PtpError
from ptpipeline.packages import Member, Packed, package_member
from ptpipeline.records.base import digest_of
from ptpipeline.task.data import Binned, Source
from ptpipeline.task.task import Task

# Part of every source key: raise it by one if the same source would give other rows.
INGEST_VERSION = 2

MAX_BYTES, MAX_ROWS = 4 * 2**30, 10_000_000  # of a source file; it is read into memory
MAX_SLICE_VALUES = 50
MAX_NAME, MAX_NAME_WORDS = 40, 3  # of a column, in characters and in words
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


def source_name(source: Source) -> str:
    """Return the source in words, as errors and manifests name it."""
    return source.path if source.path is not None else f"{source.package}:{source.member}"


def read_rows(task: Task, home: Path) -> SourceRows:
    """Return the text, label (or target), group and slice columns of the task's source.

    Raises DataError if the file is missing, empty, malformed, lacks a column that the task names, or has a slice column
    of more than MAX_SLICE_VALUES distinct values; ServiceUnavailable if a package cannot be fetched.
    """
    source, name = task.data.source, source_name(task.data.source)
    path = _local_file(task, home)
    if path.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty; expected rows in {source.format}")
    _check_bounds(name, path, source)
    table = _load(path, source, home)
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


def _check_bounds(name: str, path: Path, source: Source) -> None:
    """Raise DataError if the file is too large to be read; a Parquet file states its rows before they are decoded."""
    size, rows = path.stat().st_size, count_rows(path, name) if source.format == "parquet" else 0
    if size > MAX_BYTES or rows > MAX_ROWS:
        raise DataError(
            f"{name}: {size} bytes{f' and {rows} rows' if rows else ''}; a source may have at most {MAX_BYTES} bytes "
            f"and {MAX_ROWS} rows: give a part of it"
        )


def _check_columns(name: str, named: Mapping[str, str | None], slices: Iterable[str], table: Any) -> None:
    """Raise DataError if the file lacks a column that a field of `data` names, or has no rows."""
    for field, column in [*named.items(), *(("slices", column) for column in slices)]:
        if column is not None and column not in table.column_names:
            there = _list_columns(table.column_names)
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


def _list_columns(columns: list[str]) -> str:
    """The columns for a message; only their number if the first line reads like a row, because messages must not show
    texts of rows.
    """
    if any(len(column) > MAX_NAME or len(column.split()) > MAX_NAME_WORDS for column in columns):
        return f"{len(columns)}, of which one is too long for a name; the first line may be a row"
    return ", ".join(columns)


# ---------------------------------------------------------------- loading


def _load(path: Path, source: Source, home: Path) -> Any:
    """The file as a `datasets.Dataset`; its Arrow cache is deleted afterwards, because snapshots keep the rows."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    import datasets
    from pandas.errors import ParserWarning

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix=".read-", dir=home) as cache, warnings.catch_warnings():
        warnings.simplefilter("error", ParserWarning)  # pandas only warns when it cuts rows with too many fields
        try:
            return _reader(datasets, source)(
                str(path), keep_in_memory=True, cache_dir=cache, **_options(datasets, path, source)
            )
        except PtpError:
            raise
        except Exception as error:
            reason = (_broken_line(path) if source.format == "jsonl" else None) or _reason(error)
            raise DataError(f"{source_name(source)}: not readable as {source.format}: {reason}") from error


def _reader(datasets: Any, source: Source) -> Any:
    return {"parquet": datasets.Dataset.from_parquet, "jsonl": datasets.Dataset.from_json}.get(
        source.format, datasets.Dataset.from_csv
    )


def _options(datasets: Any, path: Path, source: Source) -> dict[str, Any]:
    if source.format == "parquet":
        return {}
    options: dict[str, Any] = {"encoding": "utf-8-sig", "encoding_errors": "replace"}
    if source.format == "jsonl":
        return options
    columns = source.columns or _header(path, source)
    options |= {"features": datasets.Features({column: datasets.Value("string") for column in columns})}
    options |= {"column_names": source.columns, "index_col": False, "keep_default_na": False}
    return options | ({"sep": "\t", "quoting": csv.QUOTE_NONE} if source.format == "tsv" else {})


def _header(path: Path, source: Source) -> list[str]:
    """The column names in the first line that is not blank; DataError if two are the same or one is empty."""
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if source.format == "tsv" else {}
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        columns = next((row for row in csv.reader(file, **dialect) if len(row) > 1 or "".join(row).strip()), [])
    if any("\ufffd" in column for column in columns):
        raise DataError(f"{source_name(source)}: the header line is not UTF-8; save the file as UTF-8")
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice or "" in columns or not columns:
        raise DataError(
            f"{source_name(source)}: the header line needs one distinct name per column, found "
            f"{_list_columns(list(map(repr, columns)))}; or name them in data.source.columns"
        )
    return columns


def _reason(error: BaseException) -> str:
    """The message of the reader's first cause on one line; it names lines and fields, not texts."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or "no rows found"
    empty = "corresponds to no data" in text or text.startswith("BatchSize")  # what an empty Parquet table gives
    return "there are no rows" if empty else text


def _broken_line(path: Path) -> str | None:
    """The first line that is not a JSON object, by its number in the file: the reader counts within its own blocks."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.strip() and not isinstance(json.loads(line.rstrip()), dict):
                    return f"line {number} is not a JSON object"
            except json.JSONDecodeError as error:
                return f"line {number}, column {error.colno}: {error.msg}"
            except (ValueError, RecursionError):
                return f"line {number} is nested too deep, or has a number of too many digits"
    return None
