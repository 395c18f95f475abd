"""Files of rows as many programs write them, whole and damaged: the same rows come back, or one sentence.

Run by `make soak`: 2,000 files. Never a traceback, and never fewer rows than lines without a word about it.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ptpipeline.data.table import Table, Wanted
from ptpipeline.errors import DataError
from tests.data.tables import load

pytestmark = pytest.mark.soak

Rows = list[tuple[str, str, str]]
NAMES = ["text", "label", "more"]
WANTED = (Wanted("text", "text", text=True), Wanted("label", "label"), Wanted("more", "slices"))

PIECES = [
    '"',
    '""',
    ",",
    ";",
    "\t",
    "|",
    "\n",
    "\r\n",
    "\r",
    "\\",
    '\\"',
    "\0",
    " ",
    "\ufeff",
    "\ufffd",
    "\u2028",
    "{",
    "[",
    "sep=;",
]
CELLS = st.lists(st.sampled_from(PIECES) | st.text(st.characters(codec="utf-8"), max_size=6), max_size=4).map("".join)
ROWS = st.lists(st.tuples(CELLS, st.sampled_from(["bad", "good", "", "1"]), CELLS), min_size=1, max_size=12)


def write_csv(rows: Rows) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([tuple(NAMES), *rows])
    return buffer.getvalue().encode()


def write_quoted(rows: Rows) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\r").writerows([tuple(NAMES), *rows])
    return b"\xef\xbb\xbf" + buffer.getvalue().encode()


def write_excel(rows: Rows) -> bytes:
    buffer = io.StringIO("sep=;\r\n", newline="")
    buffer.seek(0, io.SEEK_END)
    csv.writer(buffer, delimiter=";").writerows([tuple(NAMES), *rows])
    return buffer.getvalue().encode()


def write_by_pandas(rows: Rows) -> bytes:
    assume(not any("\r" in cell for row in rows for cell in row))  # it does not quote these
    return bytes(pd.DataFrame(rows, columns=NAMES).to_csv().encode())


def write_by_polars(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(rows, schema=NAMES, orient="row").write_csv(buffer)
    return buffer.getvalue()


def write_tsv(rows: Rows) -> bytes:
    assume(not any(set(cell) & set("\t\r\n") for row in rows for cell in row))
    return "".join("\t".join(row) + "\n" for row in [tuple(NAMES), *rows]).encode()


def write_json(rows: Rows) -> bytes:
    return "\n".join(json.dumps(dict(zip(NAMES, row, strict=True))) for row in rows).encode()


def write_json_by_pandas(rows: Rows) -> bytes:
    return bytes(pd.DataFrame(rows, columns=NAMES).to_json(orient="records", lines=True, force_ascii=False).encode())


def write_parquet(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    columns = {name: [row[index] for row in rows] for index, name in enumerate(NAMES)}
    pq.write_table(pa.table(columns), buffer, row_group_size=5)
    return buffer.getvalue()


def write_parquet_by_polars(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(rows, schema=NAMES, orient="row").write_parquet(buffer)
    return buffer.getvalue()


Writer = Callable[[Rows], bytes]
WRITERS: list[tuple[Writer, str]] = [
    (write_csv, "csv"),
    (write_quoted, "csv"),
    (write_excel, "csv"),
    (write_by_pandas, "csv"),
    (write_by_polars, "csv"),
    (write_tsv, "tsv"),
    (write_json, "jsonl"),
    (write_json_by_pandas, "jsonl"),
    (write_parquet, "parquet"),
    (write_parquet_by_polars, "parquet"),
]
EACH = pytest.mark.parametrize(("write", "form"), WRITERS, ids=[write.__name__ for write, _ in WRITERS])
SOME = settings(max_examples=70, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)  # x 10 x 3


def rows_of(table: Table) -> list[tuple[str | None, ...]]:
    return list(zip(*(table.columns[name].cells for name in NAMES), strict=True))


@EACH
@SOME
@given(rows=ROWS)
def test_the_same_rows_come_back(tmp_path: Path, write: Writer, form: str, rows: Rows) -> None:
    assert rows_of(load(tmp_path, write(rows), form, WANTED)) == rows


DAMAGE = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 40),
        st.binary(max_size=3) | st.sampled_from([piece.encode() for piece in PIECES]),
    ),
    min_size=1,
    max_size=4,
)


@EACH
@SOME
@given(rows=ROWS, damage=DAMAGE)
def test_a_damaged_file_loses_no_line_unsaid(
    tmp_path: Path, write: Writer, form: str, rows: Rows, damage: list[tuple[float, int, bytes]]
) -> None:
    body = write(rows)
    for place, gone, new in damage:
        at = int(place * len(body))
        body = body[:at] + new + body[at + gone :]
    try:
        table = load(tmp_path, body, form, WANTED)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    if form == "parquet":
        assert len(rows_of(table)) == len(rows)
    else:
        assert count_lines(table, form) >= lines_of(body, form)
    if form in ("csv", "tsv") and len(table.names) == len(NAMES):
        assert letters("".join(cell or "" for row in rows_of(table) for cell in row)) == letters_of(body)


def lines_of(body: bytes, form: str) -> int:
    """The lines that are not blank, without a header line and a line that only names the delimiter."""
    text = body.decode("utf-8-sig", errors="surrogateescape")
    lines = [line for line in re.split("\r\n|\r|\n", text) if re.sub(r"[\s,;\"]", "", line)]
    directive = form == "csv" and lines and re.fullmatch(r'"?sep=.?"?', lines[0])
    return len(lines) - (form != "jsonl") - bool(directive)


def letters(text: str) -> Counter[str]:
    """How often each letter and digit stands in a text."""
    return Counter(sign for sign in text if sign.isalnum())


def letters_of(body: bytes) -> Counter[str]:
    """Those of a file behind its header line."""
    text = body.decode("utf-8-sig", errors="surrogateescape")
    text = re.sub(r'^"?sep=.?"?[\r\n]+', "", text)
    return letters(text) - letters(re.split("[\r\n]", text.lstrip("\r\n"))[0])


def count_lines(table: Table, form: str) -> int:
    """The lines that all rows take up."""
    ends = (
        0
        if form == "jsonl"
        else sum(len(re.findall("\r\n|\r|\n", cell or "")) for row in rows_of(table) for cell in row)
    )
    return len(rows_of(table)) + ends


TEXTS = st.lists(st.sampled_from([*"ab ,.'", ' 27"', '"', '" ', ", "]), min_size=1, max_size=8).map("".join)


@settings(SOME, max_examples=600)
@given(
    texts=st.lists(TEXTS, min_size=8, max_size=30),
    places=st.lists(st.tuples(st.integers(0, 29), st.booleans()), min_size=1, max_size=3),
)
def test_a_stray_quote_swallows_no_row_unsaid(tmp_path: Path, texts: list[str], places: list[tuple[int, bool]]) -> None:
    rows = [(text, "bad" if number % 2 else "good", f"x{number % 3}") for number, text in enumerate(texts)]
    lines = write_csv(rows).decode().splitlines()
    for number, begin in places:
        at = 1 + number % len(rows)
        lines[at] = f'"{lines[at]}' if begin else lines[at].replace(",bad,", '",bad,').replace(",good,", '",good,')
    try:
        table = load(tmp_path, "\n".join([*lines, ""]), "csv", WANTED)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert len(rows_of(table)) == len(rows) or table.misquoted
