"""Reads what a test wrote, through the reader of one file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptpipeline.data.files import load_file
from ptpipeline.data.table import Table, Wanted
from ptpipeline.task.data import Source

WANTED = (Wanted("text", "text", text=True), Wanted("label", "label"))


def read(path: Path, form: str = "csv", wanted: Sequence[Wanted] = WANTED, **source: Any) -> Table:
    """The table in the file."""
    return load_file(str(path), path, Source.model_validate({"path": str(path), "format": form, **source}), wanted)


def load(folder: Path, body: bytes | str, form: str = "csv", wanted: Sequence[Wanted] = WANTED, **source: Any) -> Table:
    """The table in a file of these bytes."""
    path = folder / f"rows.{form}"
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return read(path, form, wanted, **source)


def pairs(table: Table) -> list[tuple[str | None, str | None]]:
    """Text and label of each row."""
    return list(zip(table.columns["text"].cells, table.columns["label"].cells, strict=True))
