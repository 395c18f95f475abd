"""How a csv or tsv file seems to be written, if not as its source says: what a message tells to do about it."""

import csv
import json
import re
from collections.abc import Sequence

from ptpipeline.data.table import Wanted, fold_name, is_utf8

USUAL = (",", ";", "\t", "|")
MAX_LOOKED = 10_000  # characters of a line
BACKSLASH = 'a quote is escaped by a backslash; write a quote within a quoted field as "", not as \\"'
BEHIND = 'text stands behind the quote that closes a field; write a quote within a quoted field as ""'
SINGLE = "fields stand in single quotes; write them in double quotes"

_DASHES = re.compile(r"[|+]?[\s:]*-{2,}[\s:]*([|+][\s:]*-{2,}[\s:]*)*[|+]?")  # below a header line, or around a table
_JSON = re.compile(r"""\s*(?:\{\s*["'}]|\[\s*[\[{"'\]]|[\[{]\s*$)""")
_GAP = re.compile(r"\S {2,}(?=\S)")  # between names at fixed places
BARS = (
    "the file is a table drawn with bars and dashes, as in Markdown; take these out by: "
    "sed -E 's/(│|┃|┆|║)/|/g; /\\|/!d; /^[-|+: ]+$/d; s/^ *\\|? *//; s/ *\\|? *$//; s/ *\\| */|/g' FILE > NEW"
)
_BOX = str.maketrans(
    "│┃┆║─━═┄" + (corners := "┌┬┐├┼┤└┴┘┏┳┓┡╇┩┗┻┛┣╋┫╞╪╡╔╦╗╠╬╣╚╩╝╭╮╰╯╟╫╢╤╧"), "||||----" + "+" * len(corners)
)
FIXED = (
    "the columns stand at fixed places, with blanks between them; write them as csv by: "
    "python -c 'import pandas, sys; pandas.read_fwf(sys.argv[1], dtype=str).to_csv(sys.argv[2], index=False)' FILE NEW"
)

_NO_DELIMITERS = "\"'\r\n\\"


def straighten(line: str) -> str:
    """Return the line with the bars and dashes of a terminal's boxes as those of a keyboard."""
    return line.translate(_BOX)


def is_drawn(line: str) -> bool:
    """Whether a line is one of dashes, as stands around or below the names of the columns of a drawn table."""
    plain = straighten(line[:MAX_LOOKED]).strip()
    return _DASHES.fullmatch(plain) is not None and bool(set(plain) & {"|", "+"})


def has_gaps(line: str) -> bool:
    """Whether names stand at fixed places of a line, with several blanks between them."""
    return _GAP.search(line) is not None and "===" not in line


def advise_format(line: str) -> str | None:
    """Return what to do about a file whose first line is none of a table; None if it may be one."""
    return "if the file holds JSON, set data.source.format: jsonl" if _JSON.match(line) else None


def advise_header(line: str, names: Sequence[str], wanted: Sequence[Wanted], delimiter: str, tsv: bool) -> str | None:
    """Return what reads a file in whose header line a wanted column is missing; None if nothing is known.

    line: the header line as it stands. names: its columns, as they were read by the delimiter.
    """
    if (other := advise_format(line)) is not None:
        return other
    if not all(map(is_utf8, names)):
        return "the header line is not UTF-8; save the file as UTF-8"
    if tsv and any(_is_enclosed(name, '"') for name in names):
        return 'set data.source.format: csv and data.source.delimiter: "\\t"'
    if are_single_quoted(names):
        return SINGLE
    if (
        len(names) == 1
        and has_gaps(line)
        and {fold_name(one.column) for one in wanted} <= set(map(fold_name, line.split()))
    ):
        return FIXED
    if {fold_name(one.column) for one in wanted} <= set(map(fold_name, names)):
        return None  # they are there, written otherwise: another sign would part the texts too
    sign = find_delimiter(line, wanted)
    return None if sign is None or sign == delimiter else advise_delimiter(sign, tsv)


def are_single_quoted(names: Sequence[str]) -> bool:
    """Whether all fields of a line stand in single quotes, which quote nothing."""
    return all(_is_enclosed(name, "'") for name in names)


def advise_delimiter(sign: str, tsv: bool = False) -> str:
    """Return the setting that reads a file whose fields this character separates."""
    if tsv and sign == ",":
        return "if ',' separates the columns, set data.source.format: csv"
    form = "data.source.format: csv and " if tsv else ""
    return f"if {sign!r} separates the columns, set {form}data.source.delimiter: {json.dumps(sign)}"


def find_delimiter(line: str, wanted: Sequence[Wanted]) -> str | None:
    """Return the character by which a header line has all wanted columns; None if there is none."""
    columns = {fold_name(one.column) for one in wanted}
    signs = [sign for sign in dict.fromkeys(line[:MAX_LOOKED]) if not sign.isalnum() and sign not in _NO_DELIMITERS]
    if len(columns) < 2:  # one name alone stands between other signs too
        signs = [sign for sign in USUAL if sign in signs]
    return next((sign for sign in signs if columns and columns <= {fold_name(one) for one in split(line, sign)}), None)


def guess_delimiter(line: str, width: int) -> str | None:
    """Return the usual character that parts a line into so many fields; None if there is none."""
    return next((sign for sign in USUAL if len(split(line, sign)) == width > 1), None)


def split(line: str, sign: str) -> list[str]:
    """Return the fields of a line by this delimiter; none if it is no line of such a csv file."""
    if len(line) > MAX_LOOKED:
        return []
    try:
        return next(csv.reader([line], delimiter=sign, strict=True), [])
    except csv.Error:
        return []


def advise_row(record: Sequence[str], width: int, delimiter: str, tsv: bool, lines: str) -> str:
    """Return what to do about a record that has another number of fields than the header line; lines: as it stands."""
    if not all(map(is_utf8, record)):
        return "the line is not UTF-8; save the file as UTF-8"
    if len(record) == 1 and (sign := guess_delimiter(lines.rstrip("\r\n"), width)):
        return advise_delimiter(sign, tsv)
    if tsv and any(field.startswith('"') for field in record):
        return (
            "tsv has no quotes; if quotes enclose fields here, set data.source.format: csv and "
            'data.source.delimiter: "\\t"'
        )
    if not tsv and any(field[:1].isspace() and field.lstrip().startswith('"') for field in record):
        return "delete the blank before the quote: a quote that encloses a field follows the delimiter at once"
    if not tsv and '\\"' in lines:
        return BACKSLASH
    if not tsv and any(field.lstrip().startswith(("\u201c", "\u201e")) for field in record):
        return "curly quotes enclose no field: write them as straight double quotes"
    if width == 1:
        return "the first line has to hold the names of all columns: delete what stands above it"
    rule = "a text must hold no tab and no line end" if tsv else _quote_rule(delimiter)
    if len(record) < width:
        return f"if it is no row, delete the line; {rule}"
    return f"a delimiter is escaped by a backslash; {rule}" if not tsv and f"\\{delimiter}" in lines else rule


def _quote_rule(delimiter: str) -> str:
    return f"a text that holds {delimiter!r} or a line end must stand in double quotes"


def _is_enclosed(name: str, quote: str) -> bool:
    return len(name) > 1 and name.startswith(quote) and name.endswith(quote)
