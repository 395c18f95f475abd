"""Reads one file of rows, csv, tsv, JSON Lines or Parquet, through `datasets`.

Text files are UTF-8; other bytes become U+FFFD, which the check `encoding` counts. Every csv and tsv column is read as
text, so that `001`, `NA` and `null` stay as they are in the file.
"""

import csv
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

from ptpipeline.data.parquet import count_rows
from ptpipeline.errors import DataError, PtpError
from ptpipeline.task.data import Source

MAX_BYTES, MAX_ROWS = 4 * 2**30, 10_000_000  # of a source file; it is read into memory
MAX_NAME, MAX_NAME_WORDS = 40, 3  # of a column, in characters and in words


def source_name(source: Source) -> str:
    """Return the source in words, as errors and manifests name it."""
    return source.path if source.path is not None else f"{source.package}:{source.member}"


def load_file(path: Path, source: Source, home: Path) -> Any:
    """Return the file as a `datasets.Dataset`; its Arrow cache is deleted afterwards, because snapshots keep the rows.

    Raises DataError if it is empty, too large or malformed.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{source_name(source)}: the file is empty; expected rows in {source.format}")
    _check_bounds(source_name(source), path, source)
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


def _check_bounds(name: str, path: Path, source: Source) -> None:
    """Raise DataError if the file is too large to be read; a Parquet file states its rows before they are decoded."""
    size, rows = path.stat().st_size, count_rows(path, name) if source.format == "parquet" else 0
    if size > MAX_BYTES or rows > MAX_ROWS:
        raise DataError(
            f"{name}: {size} bytes{f' and {rows} rows' if rows else ''}; a source may have at most {MAX_BYTES} bytes "
            f"and {MAX_ROWS} rows: give a part of it"
        )


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
            f"{list_columns(list(map(repr, columns)))}; or name them in data.source.columns"
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


def list_columns(columns: list[str]) -> str:
    """Return the columns for a message; only their number if the first line reads like a row: no message shows the text
    of a row.
    """
    if any(len(column) > MAX_NAME or len(column.split()) > MAX_NAME_WORDS for column in columns):
        return f"{len(columns)}, of which one is too long for a name; the first line may be a row"
    return ", ".join(columns)
