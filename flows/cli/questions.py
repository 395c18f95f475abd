"""What `ptp predict` is asked: texts as arguments, the fields of one text by name, or the rows of a file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from flows.cli.app import read_lines
from flows.cli.options import naming_options, read_delimiter
from ptpipeline.data.table import is_utf8
from ptpipeline.errors import DataError
from ptpipeline.foreign import escape_controls, parsing
from ptpipeline.settings import load_settings
from ptpipeline.task.source import Source
from ptpipeline.task.template import Fields, list_fields


class Questions(NamedTuple):
    """What is asked, and what messages call each text, by its number from 1."""

    texts: list[str | Fields]
    place: Callable[[int], str]


def read_questions(texts: Sequence[str], pairs: Sequence[str], path: Path | None) -> Questions:
    """Return the texts, or the one text whose fields are given as `NAME=TEXT`; nothing if `path` has the rows.

    Raises DataError if nothing, or more than one way, was given, or a pair is none; NotFound if there is no such file.
    """
    ways = [name for name, value in (("TEXT", texts), ("--field", pairs), ("--input", path)) if value]
    if len(ways) != 1:
        raise DataError(
            f"{' and '.join(ways) or 'no text'} given; give texts, or --field NAME=TEXT for each field of one text, or "
            "--input FILE"
        )
    if path is not None:  # no model has to be loaded to tell that it is not there
        from ptpipeline.data.local import find_rows_file

        find_rows_file(path)
    if pairs:
        return Questions([read_pairs(pairs)], lambda _: "--field")
    if list(texts) == ["-"]:
        return Questions([*read_lines()], lambda number: f"standard input, line {number}")
    return Questions([*texts], lambda number: f"text {number}")


def read_pairs(pairs: Sequence[str]) -> Fields:
    """Return the fields that `NAME=TEXT` pairs give. Raises DataError if a pair is none, or a name stands twice."""
    fields: dict[str, str] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise DataError(f"--field {name[:40]!r} has no `=`: write --field NAME=TEXT, once for each field")
        if name in fields:
            raise DataError(f"--field {name[:40]} is given twice: give each field once")
        if not is_utf8(pair):
            raise DataError(f"--field {escape_controls(name[:40])}: not UTF-8; give it in the terminal's encoding")
        fields[name] = text
    return fields


def read_rows(path: Path, form: str | None, delimiter: str | None, names: Sequence[str]) -> Questions:
    """Return the rows of a file whose columns have the `names` of the fields.

    delimiter: stands between the fields of a csv file, if it is no comma. Raises NotFound if there is no such file,
    DataError if a field is missing, and what `load_rows` raises.
    """
    from ptpipeline.data.local import find_rows_file, load_rows, tell_format
    from ptpipeline.data.table import Wanted

    path = find_rows_file(path)
    with parsing(
        f"{path}: --format and --delimiter", "--delimiter is one character between the fields of a csv", DataError
    ):
        fields = {"path": str(path), "format": form or tell_format(path), "delimiter": read_delimiter(delimiter)}
        source = Source.model_validate(fields)
    wanted = [Wanted(name, f"fields.{name}", text=True) for name in names]
    with naming_options():
        table = load_rows(path, str(path), source, wanted, load_settings().home)
    columns = [table.columns[name].cells for name in names]
    if table.misquoted:
        raise DataError(
            f"{path}: {table.places.describe(table.misquoted)}: seem to have swallowed the lines behind, by a quote "
            "that is not closed; close the quote that opens there, or give the rows as jsonl if the texts are right"
        )
    missing = [number for number, cells in enumerate(zip(*columns, strict=True), 1) if None in cells]
    if missing:
        raise DataError(f"{path}: {table.places.describe(missing)}: a field is missing; fill {list_fields(names)} in")
    rows = zip(*columns, strict=True)
    broken = [number for number, cells in enumerate(rows, 1) if not is_utf8("".join(cell or "" for cell in cells))]
    if broken:
        raise DataError(f"{path}: {table.places.describe(broken)}: not UTF-8; save the file as UTF-8")
    texts = [dict(zip(names, (cell or "" for cell in cells), strict=True)) for cells in zip(*columns, strict=True)]
    return Questions([*texts], lambda number: f"{path}: {table.places.describe([number])}")
