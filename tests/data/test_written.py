"""Tables as other programs write them are read back, or told with what reads them."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ptpipeline.data.table import Wanted
from ptpipeline.errors import DataError
from tests.data.tables import WANTED, load, pairs, read


class Excel(csv.Dialect):
    """What Excel saves as CSV in countries of the decimal comma."""

    delimiter, quotechar, doublequote, lineterminator, quoting = ";", '"', True, "\r\n", csv.QUOTE_MINIMAL


CELLS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    [
        "",
        " ",
        '"',
        '""',
        ",",
        ";",
        "\t",
        "\n",
        "\r\n",
        "\r",
        "a\nb",
        "NA",
        "sep=;",
        "\ufeff",
        "\u2028",
        "\\",
        '\\"',
        "'",
    ]
)


ROWS = st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6)


FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def kept(rows: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    return [(text, label) for text, label, _ in rows]


@FEW
@given(ROWS, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from(["\n", "\r\n", "\r"]))
def test_what_the_csv_module_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str, str]], quoting: int, end: str
) -> None:
    odd = {"\r", "\n"} - set(end)
    assume(quoting == csv.QUOTE_ALL or not any(odd & set(cell) for row in rows for cell in row))  # told, see below
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=quoting, lineterminator=end).writerows([("text", "label", "more"), *rows])
    assert pairs(load(tmp_path, buffer.getvalue())) == kept(rows)


@FEW
@given(ROWS)
def test_what_excel_writes_is_read_back(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, Excel).writerows([("text", "label", "more"), *rows])
    body = b"\xef\xbb\xbf" + buffer.getvalue().encode()
    assert pairs(load(tmp_path, body, delimiter=";")) == kept(rows)
    assert pairs(load(tmp_path, b"sep=;\r\n" + buffer.getvalue().encode())) == kept(rows)


@FEW
@given(ROWS, st.booleans(), st.sampled_from([",", ";", "\t", "|"]))
def test_what_pandas_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str, str]], index: bool, delimiter: str
) -> None:
    assume(not any("\r" in cell for row in rows for cell in row))  # told, see below
    frame = pd.DataFrame(rows, columns=["text", "label", "more"])
    path = tmp_path / "rows.csv"
    frame.to_csv(path, index=index, sep=delimiter)
    assert pairs(read(path, delimiter=delimiter)) == kept(rows)


@FEW
@given(ROWS, st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["necessary", "always", "non_numeric"]))
def test_what_polars_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str, str]], delimiter: str, style: Any
) -> None:
    frame = pl.DataFrame(rows, schema=["text", "label", "more"], orient="row")
    frame.write_csv(tmp_path / "rows.csv", separator=delimiter, quote_style=style)
    assert pairs(read(tmp_path / "rows.csv", delimiter=delimiter)) == kept(rows)


@pytest.mark.parametrize("column", ["text", "label", "more"])
def test_a_carriage_return_that_is_not_quoted_is_told(tmp_path: Path, column: str) -> None:
    """As pandas writes it before Python 3.13."""
    rows = [{"text": "a", "label": "bad", "more": "x"}, {"text": "b", "label": "good", "more": "y"}]
    rows[0][column] += "\rc"
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (tmp_path / "rows.csv").write_bytes("\n".join([*lines, ""]).encode())
    with pytest.raises(DataError, match=r"line [23] has . fields?, expected 3; a carriage return within a text must"):
        read(tmp_path / "rows.csv")
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False, quoting=csv.QUOTE_ALL)
    assert pairs(read(tmp_path / "rows.csv"))[0] == (rows[0]["text"], rows[0]["label"])


@FEW
@given(ROWS)
def test_a_tsv_without_tabs_and_line_ends_is_read_back(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    clean = [tuple(re.sub(r"[\0\t\r\n]", "", cell) for cell in row) for row in rows]
    body = "".join("\t".join(row) + "\n" for row in [("text", "label", "more"), *clean])
    assert pairs(load(tmp_path, body, "tsv")) == [row[:2] for row in clean]


def test_files_written_behind_each_other_are_told_with_the_line(tmp_path: Path) -> None:
    for mark in ("", "\ufeff"):
        with pytest.raises(DataError, match="line 4 repeats the header line; delete the line"):
            load(tmp_path, f"text,label\na,bad\n\n{mark}text,label\nb,good\n")
    with pytest.raises(DataError, match="line 3 repeats the header line; delete the line"):
        load(tmp_path, 'text,label\na,bad\nText," LABEL"\nb,good\n')
    assert pairs(load(tmp_path, "text,label\ntext,good\nlabel,bad\n")) == [("text", "good"), ("label", "bad")]


@pytest.mark.parametrize(
    "name", ["Text", " text", 'text"', "TEXT ", "text\xa0", "\u200btext", "\uff34ext", "“text”", "«text»"]
)
def test_a_name_that_is_nearly_right_is_told_with_the_line_to_write(tmp_path: Path, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    body = f"{quoted},label\na,bad\nb,good\n"
    with pytest.raises(DataError, match="names are compared exactly: write data") as raised:
        load(tmp_path, body)
    line = YAML(typ="safe").load(str(raised.value).partition("write data.")[2])
    table = load(tmp_path, body, wanted=(Wanted(line["text"], "text", text=True), Wanted("label", "label")))
    assert table.columns[name].cells == ["a", "b"]


def test_a_slice_that_is_nearly_right_is_told_as_one_of_a_list(tmp_path: Path) -> None:
    wanted = (*WANTED, Wanted("Lang", "slices"))
    with pytest.raises(DataError, match=r'which data\.slices names; .* exactly: write "lang" in the list$'):
        load(tmp_path, "text,label,lang\na,bad,en\n", wanted=wanted)


def test_a_name_within_objects_is_told_with_what_makes_a_column_of_it(tmp_path: Path) -> None:
    wanted = (Wanted("doc.text", "text", text=True), WANTED[1])
    with pytest.raises(DataError, match="what stands within objects is no column: give it one"):
        load(tmp_path, '{"doc": {"text": "a"}, "label": "bad"}\n' * 2, "jsonl", wanted)


def test_a_name_of_other_letters_that_look_alike_is_written_out(tmp_path: Path) -> None:
    wanted = (Wanted("caf\u00e9", "text", text=True), Wanted("label", "label"))
    with pytest.raises(DataError, match=re.escape(r'write data.text: "cafe\u0301"')):
        load(tmp_path, "cafe\u0301,label\na,bad\n", wanted=wanted)


def test_a_header_line_is_no_row_however_its_names_are_written(tmp_path: Path) -> None:
    for header in ("\u200bText ,n", "cafe,LABEL", "'text',n"):
        with pytest.raises(DataError, match="line 1"):
            load(tmp_path, f"{header}\na,bad\n", columns=["text", "label"])


def quote(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


@FEW
@given(ROWS, st.sampled_from([(",", "write.csv"), (";", "write.csv2"), ("\t", "write.table")]), st.booleans())
def test_what_r_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str, str]], style: tuple[str, str], names: bool
) -> None:
    """Every text in quotes, numbered rows under an empty name, lines by a line feed."""
    delimiter, _ = style
    lines = [('""', *map(quote, ("text", "label", "more")))]
    lines += [(f'"{number}"', *map(quote, row)) for number, row in enumerate(rows, 1)]
    body = "".join(delimiter.join(line if names else line[1:]) + "\n" for line in lines)
    assume(not any("\r" in cell for row in rows for cell in row))
    assert pairs(load(tmp_path, body, delimiter=delimiter)) == kept(rows)


@FEW
@given(ROWS, st.sampled_from([",", ";", "|", "\t"]))
def test_what_copy_of_postgresql_writes_as_csv_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str, str]], delimiter: str
) -> None:
    """COPY TO ... CSV HEADER quotes what holds a delimiter, a quote or a line end, and an empty text; NULL is empty."""

    def write(cell: str) -> str:
        return quote(cell) if cell in ("", "\\.") or set(cell) & {delimiter, '"', "\r", "\n"} else cell

    body = "".join(delimiter.join(map(write, row)) + "\n" for row in [("text", "label", "more"), *rows])
    assert pairs(load(tmp_path, body, delimiter=delimiter)) == kept(rows)


@FEW
@given(ROWS, st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["needed", "all_valid"]))
def test_what_arrow_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str, str]], delimiter: str, quoting: str
) -> None:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    columns = dict(zip(("text", "label", "more"), map(list, zip(*rows, strict=True)), strict=True))
    options = arrow_csv.WriteOptions(delimiter=delimiter, quoting_style=quoting)
    arrow_csv.write_csv(pa.table(columns), tmp_path / "rows.csv", options)
    assert pairs(read(tmp_path / "rows.csv", delimiter=delimiter)) == kept(rows)


@FEW
@given(ROWS)
def test_what_spreadsheets_of_the_mac_write_is_read_back(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    """Lines by a carriage return, a mark in front, and quotes where they are needed."""
    assume(not any("\n" in cell for row in rows for cell in row))
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r").writerows([("text", "label", "more"), *rows])
    assert pairs(load(tmp_path, b"\xef\xbb\xbf" + buffer.getvalue().encode())) == kept(rows)


@FEW
@given(ROWS, st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n"]))
def test_a_dialect_that_is_not_as_the_source_says_is_read_as_the_message_says(
    tmp_path: Path, rows: list[tuple[str, str, str]], delimiter: str, end: str
) -> None:
    """Read as csv with commas: the same rows, or one sentence whose setting reads them."""
    assume(not any("\r" in cell for row in rows for cell in row))
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator=end).writerows(
        [("text", "label", "more"), *rows]
    )
    source: dict[str, Any] = {}
    if delimiter != ",":
        with pytest.raises(DataError) as raised:
            load(tmp_path, buffer.getvalue())
        advised = re.search(r'set data\.source\.delimiter: (".*")$', str(raised.value))
        assert advised, str(raised.value)
        source = {"delimiter": YAML(typ="safe").load(advised[1])}
    assert pairs(load(tmp_path, buffer.getvalue(), **source)) == kept(rows)
