"""Csv and tsv as people's programs write them, and what is said of what no program would."""

import csv
import re
from pathlib import Path

import pytest

from ptpipeline.data import delimited
from ptpipeline.data.table import Wanted
from ptpipeline.errors import DataError
from tests.data.tables import WANTED, load, pairs

AB = [("a", "bad"), ("b", "good")]


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    "body",
    [
        "text,label\na,bad\nb,good\n",
        "text,label\r\na,bad\r\nb,good",
        "text,label\ra,bad\rb,good\r",
        "text,label\r\na,bad\nb,good\r",
        "\ufefftext,label\n\n  \na,bad\n\n\nb,good\n\n",
        '"text","label"\n"a","bad"\n"b","good"\n',
        ",text,label\n0,a,bad\n1,b,good\n",
        "Unnamed: 0,text,label\n0,a,bad\n1,b,good\n",
        "x,x,text,label\n1,2,a,bad\n3,4,b,good\n",
        "text,label,\na,bad,\nb,good,\n",
        "text,label\na,bad,,\nb,good,\n",
        "text,label,comment\na,bad\nb,good,fine\n",
        "sep=,\ntext,label\na,bad\nb,good\n",
        "sep=;\r\ntext;label\r\na;bad\r\nb;good\r\n",
        '"sep=;"\ntext;label\na;bad\nb;good\n',
        "caf\udce9,text,label\n1,a,bad\n\udcff,b,good\n",
        "\ufeff\ufefftext,label\na,bad\nb,good\n",
        '\ufeff\ufeff"text",label\na,bad\nb,good\n',
        "text,label\na,bad\nb,good\n\x1a",
        "text,label\r\na,bad\r\nb,good\r\n\x1a\x1a\r\n",
        "text,label\r\r\na,bad\r\r\nb,good\r\r\n",
        '\ufeffsep=;\r\n"text";"label"\r\na;bad\r\nb;good\r\n',
    ],
)
def test_what_the_task_does_not_name_decides_nothing(tmp_path: Path, body: str) -> None:
    assert pairs(load(tmp_path, body.encode(errors="surrogateescape"))) == AB


def test_cells_are_text_to_the_last_character(tmp_path: Path) -> None:
    body = "text,label\n007,NA\n 1.0 ,null\n'it''s',True\n5\" pipe,#N/A\n\\N,-0\na\0b,1e5\n\u2028\x0c,\x1c\n"
    assert pairs(load(tmp_path, body)) == [
        ("007", "NA"),
        (" 1.0 ", "null"),
        ("'it''s'", "True"),
        ('5" pipe', "#N/A"),
        ("\\N", "-0"),
        ("a\0b", "1e5"),
        ("\u2028\x0c", "\x1c"),
    ]


def test_a_quoted_text_keeps_its_lines_and_their_ends(tmp_path: Path) -> None:
    table = load(tmp_path, 'text,label\r\n"one\r\ntwo\nthree\rfour",bad\r\n"say ""no"", twice",good\r\n')
    assert pairs(table) == [("one\r\ntwo\nthree\rfour", "bad"), ('say "no", twice', "good")]
    assert table.places.describe([2]) == "line 6"
    assert table.misquoted == frozenset()


def test_a_long_text_is_read_and_a_longer_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"text,label\n{'a' * 300_000},bad\n{'b' * 400_000},good\n"
    assert [len(text or "") for text, _ in pairs(load(tmp_path, body))] == [300_000, 400_000]
    monkeypatch.setattr(delimited, "MAX_FIELD", 350_000)
    with pytest.raises(DataError, match="line 3: a field of more than 350000 characters; shorten it"):
        load(tmp_path, body)
    monkeypatch.setattr(delimited, "MAX_LINE", 350_000)
    with pytest.raises(DataError, match="a line of more than 350000 characters"):
        load(tmp_path, body)


def test_a_reader_beside_others_does_not_lower_their_limit(tmp_path: Path) -> None:
    load(tmp_path, "text,label\na,bad\n")
    assert csv.field_size_limit() == delimited.MAX_FIELD


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_ROWS", 1)
    with pytest.raises(DataError, match="more than"):
        load(tmp_path, "text,label\na,bad\nb,good\n")


def test_a_byte_that_is_not_utf8_is_kept_apart_from_a_valid_replacement(tmp_path: Path) -> None:
    table = load(tmp_path, b"text,label\ncaf\xe9,bad\ncaf\xef\xbf\xbd,good\n")
    assert pairs(table) == [("caf\udce9", "bad"), ("caf\ufffd", "good")]


# ---------------------------------------------------------------- header and columns


def test_a_header_line_beside_given_columns_is_no_row(tmp_path: Path) -> None:
    body = ",text,label\n0,a,bad\n1,b,good\n"
    assert pairs(load(tmp_path, body, columns=["n", "text", "label"])) == AB
    assert pairs(load(tmp_path, body, columns=["text", "label", "n"])) == AB


def test_half_a_header_line_beside_given_columns_is_told(tmp_path: Path) -> None:
    body = "text,sentiment\na,bad\nb,good\n"
    with pytest.raises(DataError, match="line 1 reads like a header line: column 'text' holds its own name there"):
        load(tmp_path, body, columns=["text", "label"])
    assert pairs(load(tmp_path, body.partition("\n")[2], columns=["text", "label"])) == AB  # delete the line


def test_a_column_of_two_is_told_only_if_it_is_named(tmp_path: Path) -> None:
    body = "text,text,label\nx,a,bad\ny,b,good\n"
    with pytest.raises(DataError, match=r"2 columns have the name 'text', which data.text names; give each another"):
        load(tmp_path, body)
    assert pairs(load(tmp_path, body.replace("text,text", "title,text"))) == AB


@pytest.mark.parametrize(
    ("body", "advice", "source"),
    [
        ("text;label\na;bad\nb;good\n", 'set data.source.delimiter: ";"', {"delimiter": ";"}),
        ('text\tlabel\n"a"\tbad\nb\tgood\n', 'set data.source.delimiter: "\\t"', {"delimiter": "\t"}),
        ("text|label\na|bad\nb|good\n", 'set data.source.delimiter: "|"', {"delimiter": "|"}),
        ('"text";"label"\n"a, x";"bad"\n"b";"good"\n', 'set data.source.delimiter: ";"', {"delimiter": ";"}),
        ('"text"\t"label"\n"a"\t"bad"\n"b"\t"good"\n', 'set data.source.delimiter: "\\t"', {"delimiter": "\t"}),
        ('"text" "label"\n"a" "bad"\n"b" "good"\n', 'set data.source.delimiter: " "', {"delimiter": " "}),
        ("text^label\na^bad\nb^good\n", 'set data.source.delimiter: "^"', {"delimiter": "^"}),
        ("text\x01label\na\x01bad\nb\x01good\n", 'set data.source.delimiter: "\\u0001"', {"delimiter": "\x01"}),
        ("text;label;note, if any\na;bad;\nb;good;\n", 'set data.source.delimiter: ";"', {"delimiter": ";"}),
        ("\n\nText;Label;text;label\n;;a;bad\n;;b;good\n", 'set data.source.delimiter: ";"', {"delimiter": ";"}),
        ("a,bad\nb,good\n", "name its columns in data.source.columns", {"columns": ["text", "label"]}),
    ],
)
def test_another_layout_is_told_with_the_setting_that_reads_it(
    tmp_path: Path, body: str, advice: str, source: dict[str, object]
) -> None:
    with pytest.raises(DataError) as raised:
        load(tmp_path, body)
    assert advice in str(raised.value)
    assert [(text.removesuffix(", x"), label) for text, label in pairs(load(tmp_path, body, **source)) if text] == AB


@pytest.mark.parametrize("header", ["text , label", "text ; label", "text | label", " text, label"])
def test_names_with_blanks_beside_them_are_told_as_they_stand(tmp_path: Path, header: str) -> None:
    """A blank between the columns would also part the texts."""
    sign = next(sign for sign in ",;|" if sign in header)
    body = f"{header}\na film{sign}bad\nthe plot{sign}good\n"
    with pytest.raises(DataError, match=r"names are compared exactly: write data\.text: ") as raised:
        load(tmp_path, body, delimiter=sign)
    assert "delimiter" not in str(raised.value)
    text, label = header.split(sign)
    wanted = (Wanted(text, "text", text=True), Wanted(label, "label"))
    assert load(tmp_path, body, wanted=wanted, delimiter=sign).columns[text].cells == ["a film", "the plot"]


def test_a_delimiter_between_quotes_is_told_if_the_names_are_others(tmp_path: Path) -> None:
    body = '"text\n(full)";"label"\n"a";"bad"\n"b";"good"\n'
    with pytest.raises(
        DataError, match=r"lines 1 to 2: if ';' separates the columns, set data\.source\.delimiter: \";\"$"
    ):
        load(tmp_path, body)
    wanted = (Wanted("text\n(full)", "text", text=True), WANTED[1])
    table = load(tmp_path, body, wanted=wanted, delimiter=";")
    assert table.columns["text\n(full)"].cells == ["a", "b"]


def test_a_delimiter_beside_given_columns_is_told_with_the_setting_that_reads_it(tmp_path: Path) -> None:
    names = ["text", "label"]
    with pytest.raises(DataError, match=r"line 1 has 1 field, expected 2; .* set data\.source\.delimiter: \";\""):
        load(tmp_path, "a;bad\nb;good\n", columns=names)
    assert pairs(load(tmp_path, "a;bad\nb;good\n", columns=names, delimiter=";")) == AB


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
def test_row_names_that_the_header_line_lacks_are_told(tmp_path: Path, delimiter: str) -> None:
    """As R's write.table leaves them out, unless it is asked for `col.names=NA`."""
    header, *rows = ['"text",label'.replace(",", delimiter), *(f'"{n}",{a},{b}' for n, (a, b) in enumerate(AB, 1))]
    body = "\n".join([header, *(row.replace(",", delimiter) for row in rows), ""])
    with pytest.raises(
        DataError, match="the rows begin with a name or number, for which the header line has none: put "
    ):
        load(tmp_path, body, delimiter=delimiter)
    assert pairs(load(tmp_path, f'"row"{delimiter}{body}', delimiter=delimiter)) == AB
    assert pairs(load(tmp_path, body, delimiter=delimiter, columns=["row", "text", "label"])) == AB
    with pytest.raises(DataError, match="the rows begin with a name or number"):
        load(tmp_path, body, delimiter=delimiter, columns=["text", "label"])


def test_a_tsv_whose_header_is_quoted_is_told_with_the_setting_that_reads_it(tmp_path: Path) -> None:
    body = '"text"\t"label"\n"a"\t"bad"\n"b"\t"good"\n'
    with pytest.raises(DataError, match=r"set data\.source\.format: csv and data\.source\.delimiter: \"\\t\"$"):
        load(tmp_path, body, "tsv")
    assert pairs(load(tmp_path, body, delimiter="\t")) == AB


def test_single_quotes_are_told_and_make_no_row_of_the_header_line(tmp_path: Path) -> None:
    body = "'text','label'\n'a','bad'\n'b','good'\n"
    for columns in (None, ["text", "label"]):
        with pytest.raises(DataError, match="fields stand in single quotes; write them in double quotes"):
            load(tmp_path, body, columns=columns)
    assert pairs(load(tmp_path, body.replace("'", '"'))) == AB


@pytest.mark.parametrize(
    ("title", "number"),
    [("Reviews of 2024,\n", 2), ("Reviews of 2024\n\n", 3), ("# by x\n# on y\n", 3), ('"a, of\n2024",\n,\n', 4)],
)
def test_lines_above_the_names_of_the_columns_are_told_and_without_them_it_is_read(
    tmp_path: Path, title: str, number: int
) -> None:
    body = "text,label\na,bad\nb,good\n"
    with pytest.raises(DataError, match=f"the names of the columns seem to stand in line {number}: then delete"):
        load(tmp_path, title + body)
    assert pairs(load(tmp_path, body)) == AB


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("| text | label |\n|:--|--:|\n| a | bad |\n", "a table drawn with bars"),
        ("+---+---+\n| text | label |\n+---+---+\n| a | bad |\n", "a table drawn with bars"),
        ("text      label\na b       bad\n", "the columns stand at fixed places"),
        ("x,y\n---,---\na,bad\n", "if the file has no header line"),
    ],
)
@pytest.mark.parametrize("delimiter", [None, "|"])
def test_a_drawn_table_is_told_as_one(tmp_path: Path, body: str, told: str, delimiter: str | None) -> None:
    with pytest.raises(DataError, match=told):
        load(tmp_path, body, delimiter=delimiter)


def test_a_web_page_is_told(tmp_path: Path) -> None:
    for form in ("csv", "tsv", "jsonl"):
        with pytest.raises(DataError, match="the file is a page of HTML; download the rows"):
            load(tmp_path, "<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", form)
    page = Wanted("<html>", "text", text=True)
    assert load(tmp_path, "<html>,label\na,bad\n", wanted=(page, WANTED[1])).columns["<html>"].cells == ["a"]


def test_other_formats_in_a_text_file_are_told_with_the_setting_that_reads_them(tmp_path: Path) -> None:
    rows = '{"text": "a", "label": "bad"}\n{"text": "b", "label": "good"}\n'
    for body in (rows, rows.replace(", ", ","), rows.replace(": ", ":")):
        with pytest.raises(DataError, match=r"set data\.source\.format: jsonl$"):
            load(tmp_path, body)
    assert pairs(load(tmp_path, rows, "jsonl")) == AB
    with pytest.raises(DataError, match=r"if ',' separates the columns, set data\.source\.format: csv"):
        load(tmp_path, "text,label\na,bad\nb,good\n", "tsv")


def test_curly_quotes_are_told(tmp_path: Path) -> None:
    body = "text,label\n\u201ca, b\u201d,bad\n"
    with pytest.raises(
        DataError, match="line 2 has 3 fields, expected 2; curly quotes enclose no field: write them as"
    ):
        load(tmp_path, body)
    assert pairs(load(tmp_path, re.sub("[\u201c\u201d]", '"', body))) == [("a, b", "bad")]


@pytest.mark.parametrize("first", ["[01/05/24, 10:00:00] Anna: hi", "[text],[label]", "{name}, hello"])
def test_a_line_in_brackets_is_not_told_as_json(tmp_path: Path, first: str) -> None:
    with pytest.raises(DataError, match="no column 'text'") as raised:
        load(tmp_path, f"{first}\n{first}\n")
    assert "jsonl" not in str(raised.value)


def test_a_header_that_is_not_utf8_is_told_if_a_column_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the header line is not UTF-8; save the file as UTF-8"):
        load(tmp_path, "t\u00e9xte,label\na,bad\n".encode("latin-1"))


def test_names_that_could_be_misread_are_quoted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the columns are '', ' label', text;"):
        load(tmp_path, ", label,text\n0,bad,a\n")


# ---------------------------------------------------------------- rows that are not of the table


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("text,label\na,bad\nwell, I like it,good\n", "line 3 has 3 fields, expected 2; a text that holds ','"),
        ("text,label\na,bad\n\nb\n", "line 4 has 1 field, expected 2"),
        ("label,text\nbad,a\ngood,b\nand more\n", "line 4 has 1 field, expected 2"),
        ("text,label\na,bad\n(1 row affected)\n", "line 3 has 1 field, expected 2; if it is no row, delete the line"),
        ("text,label\n1,bad\n2,a,good\n", "line 3 has 3 fields, expected 2; a text that holds ','"),
        ('label,text\nbad, "a, b"\n', "line 2 has 3 fields, expected 2; delete the blank before the quote"),
        ('text,label\n"a\\", b",bad\n', "line 2 has 3 fields, expected 2; a quote is escaped by a backslash; write"),
        ("text,label\na\\, b,bad\n", "line 2 has 3 fields, expected 2; a delimiter is escaped by a backslash; a text"),
        (b"text,label\na\xe9,b,bad\n", "line 2 has 3 fields, expected 2; the line is not UTF-8; save the file as"),
    ],
)
def test_a_row_of_another_width_is_told_with_its_line(tmp_path: Path, body: bytes | str, sentence: str) -> None:
    with pytest.raises(DataError) as raised:
        load(tmp_path, body)
    assert sentence in str(raised.value)
    assert "I like it" not in str(raised.value)


def test_a_text_that_holds_the_delimiter_is_read_in_quotes(tmp_path: Path) -> None:
    assert pairs(load(tmp_path, 'text,label\n"well, I like it",good\n')) == [("well, I like it", "good")]


def test_quotes_in_a_tsv_are_told_with_the_setting_that_reads_them(tmp_path: Path) -> None:
    body = 'text\tlabel\n"a\tb"\tbad\n'
    with pytest.raises(DataError) as raised:
        load(tmp_path, body, "tsv")
    assert 'set data.source.format: csv and data.source.delimiter: "\\t"' in str(raised.value)
    assert pairs(load(tmp_path, body, "csv", delimiter="\t")) == [("a\tb", "bad")]


# ---------------------------------------------------------------- quotes


def test_a_quote_that_is_never_closed_is_told_with_the_line_of_its_row(tmp_path: Path) -> None:
    body = 'text,label\na,bad\n"b,good\nc,bad\n'
    with pytest.raises(DataError, match="line 3: a quote that opens in this row is never closed; close it"):
        load(tmp_path, body)
    assert len(pairs(load(tmp_path, body.replace('"b,', '"b",')))) == 3


def test_quotes_escaped_by_a_backslash_are_told_with_the_way_to_write_them(tmp_path: Path) -> None:
    body = 'text,label\na,bad\n"he said \\"no\\", twice",good\n'
    with pytest.raises(DataError, match=r'line 3: a quote is escaped by a backslash; write .* as "", not as \\"'):
        load(tmp_path, body)
    assert pairs(load(tmp_path, body.replace('\\"', '""')))[1] == ('he said "no", twice', "good")


def test_text_behind_a_closing_quote_is_told_with_the_lines_of_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lines 2 to 3: text stands behind the quote that closes a field"):
        load(tmp_path, 'text,label\n"a,bad\n"b",good\n')
