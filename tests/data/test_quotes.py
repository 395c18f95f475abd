"""Which rows of several lines have swallowed others, and which are texts of several lines."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from ptpipeline.data.quotes import MAX_VALUES, UNJUDGED, Misquoted
from ptpipeline.data.sources import read_rows
from ptpipeline.data.table import Wanted
from ptpipeline.data.validation import check_rows
from ptpipeline.errors import DataError
from tests.data.declared import declared
from tests.data.tables import load

LINES = [f"text {number},{'bad' if number % 2 else 'good'}" for number in range(60)]
TARGETS = (Wanted("text", "text", text=True), Wanted("answer", "target", text=True))


def spoil(start: int, end: int, lines: Sequence[str] = LINES) -> list[str]:
    """The lines with a quote that opens in one of them, and closes in another by chance."""
    spoilt = list(lines)
    spoilt[start] = f'"{spoilt[start]}'
    spoilt[end] = spoilt[end].replace(",", ' of 27",', 1)
    return spoilt


def body(lines: Sequence[str], header: str = "text,label") -> str:
    return "\n".join([header, *lines, ""])


@pytest.mark.parametrize("end", [6, 7, 9, 40, 59])
def test_a_quote_that_closes_by_chance_is_found(tmp_path: Path, end: int) -> None:
    table = load(tmp_path, body(spoil(5, end)))
    assert len(table.columns["text"].cells) == 60 - (end - 5)
    assert table.misquoted == {6}
    assert table.places.describe(table.misquoted) == "line 7"


@pytest.mark.parametrize("end", [6, 7, 9, 40, 59])
def test_it_is_found_if_the_text_comes_last(tmp_path: Path, end: int) -> None:
    lines = [",".join(reversed(line.split(","))) for line in LINES]
    lines[5] = lines[5].replace(",", ',"')
    lines[end] += ' of 27"'
    table = load(tmp_path, body(lines, "label,text"))
    assert (len(table.columns["text"].cells), table.misquoted) == (60 - (end - 5), {6})


def test_one_that_opens_in_a_column_that_is_not_named_is_found(tmp_path: Path) -> None:
    lines = [f"note {number},{line}" for number, line in enumerate(LINES)]
    assert load(tmp_path, body(spoil(5, 9, lines), "note,text,label")).misquoted == {6}


def test_it_is_found_far_down_and_honest_texts_there_are_not_kept(tmp_path: Path) -> None:
    lines = [f'"text {number}, and\nmore, of it",{"bad" if number % 2 else "good"}' for number in range(3000)]
    lines += spoil(5, 9)
    assert load(tmp_path, body([*LINES, *lines])).misquoted == {3066}
    looked = Misquoted(",", 2, [0, 1])
    for line in LINES:
        looked.note(line.split(","))
    for number in range(1, 3000):
        looked.look(number, ["text, and\nmore, of it", "bad"])
    assert len(looked.candidates) == UNJUDGED


def test_it_is_found_without_a_column_of_few_values(tmp_path: Path) -> None:
    lines = [f"text {number},answer {number}" for number in range(60)]
    assert load(tmp_path, body(spoil(5, 20, lines), "text,answer"), wanted=TARGETS).misquoted == {6}


@pytest.mark.parametrize(("values", "found"), [(MAX_VALUES, {1}), (MAX_VALUES + 1, set())])
def test_half_of_the_lines_are_enough_by_a_column_of_few_values(values: int, found: set[int]) -> None:
    looked = Misquoted(",", 2, [0, 1])
    for number in range(4 * values):
        looked.note([f"text {number}", f"label {number % values}"])
    looked.look(1, ["a text\nanother text,label 3\nand more", "label 1"])
    assert looked.find() == found


@pytest.mark.parametrize(("width", "lines", "found"), [(2, 9, set()), (2, 10, {1}), (3, 2, set()), (3, 3, {1})])
def test_without_a_column_of_few_values_more_lines_are_needed(width: int, lines: int, found: set[int]) -> None:
    looked = Misquoted(",", width, range(width))
    cell = "\n".join([*[",".join(["a"] * width)] * lines, "the end"])
    looked.look(1, [cell, *["b"] * (width - 1)])
    assert looked.find() == found


@pytest.mark.parametrize(
    "text",
    [
        "Dear all,\nthanks, it works\nbye, John",
        "one, two\nthree, four\n\nfive",
        "a list\nbad\ngood\nbad",
        "I said,\nbad, good, bad,\nfine",
        "\n\n\n",
        "ends\n",
    ],
)
def test_an_honest_text_of_several_lines_is_not(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, body([*LINES, f'"{text}",bad'])).misquoted == frozenset()


def test_such_a_row_blocks_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(body(spoil(5, 9)))
    with pytest.raises(DataError, match=r"check quotes found 1: line 7; .* close the quote that opens there") as raised:
        check_rows(declared(path), read_rows(declared(path), tmp_path))
    assert "text" not in str(raised.value).partition("it looks for")[0].replace(str(path), "")


@pytest.mark.parametrize(("policy", "rows"), [("off", 56), ("warn", 55)])
def test_a_right_text_is_kept_if_the_check_is_off(tmp_path: Path, policy: str, rows: int) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(body(spoil(5, 9)))
    checks = {"quotes": policy, "near_duplicate": "off", "rows_per_label": "off"}
    task = declared(path, checks=checks)
    assert len(check_rows(task, read_rows(task, tmp_path)).rows) == rows


@pytest.mark.parametrize(
    ("cell", "quoted"),
    [
        ('"she said ""no"" twice"', True),
        ('"""no"" she said"', True),
        ('"she said no"', False),
        ('"no" she said "no"', False),
        ('""', False),
        ('"', False),
        ('the ""', False),
        ('"a "" b "c"', False),
    ],
)
def test_the_quotes_of_a_csv_in_a_tsv_are_found(tmp_path: Path, cell: str, quoted: bool) -> None:
    table = load(tmp_path, f"text\tlabel\n{cell}\tbad\n", "tsv")
    assert table.misquoted == (frozenset({1}) if quoted else frozenset())


def test_they_block_with_the_setting_that_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    pd.DataFrame({"text": ['she said "no"', "b"], "label": ["bad", "good"]}).to_csv(path, sep="\t", index=False)
    task = declared(path, source={"format": "tsv"})
    with pytest.raises(DataError, match="check quotes found 1: line 2; it looks for") as raised:
        check_rows(task, read_rows(task, tmp_path))
    assert 'set data.source.format: csv and data.source.delimiter: "\\t"' in str(raised.value)
    task = declared(path, source={"format": "csv", "delimiter": "\t"})
    assert [row.text for row in check_rows(task, read_rows(task, tmp_path)).rows] == ['she said "no"', "b"]


def test_what_excel_saves_as_text_is_found_by_the_commas_that_it_quotes(tmp_path: Path) -> None:
    """It puts each cell that holds a comma, a tab or a quote into quotes, and no other."""
    cells = [f"text {n}, and more" if n % 3 else f"text {n}" for n in range(30)]
    lines = [f'"{cell}"\tbad' if "," in cell else f"{cell}\tbad" for cell in cells]
    body = "\n".join(["text\tlabel", *lines, ""])
    assert load(tmp_path, body, "tsv").misquoted == {n + 1 for n, cell in enumerate(cells) if "," in cell}
    read = load(tmp_path, body, "csv", delimiter="\t")
    assert (read.columns["text"].cells, read.misquoted) == (cells, frozenset())


def test_three_quoted_commas_are_enough(tmp_path: Path) -> None:
    cells = ['"to be, or not to be"', '"fine, thanks"', '"well, no"']
    body = "\n".join(["text\tlabel", *(f"{cell}\tbad" for cell in cells), ""])
    assert len(load(tmp_path, body, "tsv").misquoted) == 3


@pytest.mark.parametrize(
    "cells",
    [
        ['"to be, or not to be"', "to be, or not", '"fine, thanks"', '"well, no"'],  # a comma without quotes
        ['"to be, or not to be"', '"fine, thanks"', '"well, no"', '"hello"'],  # quotes without a comma
        ['"to be, or not to be"', '"fine, thanks"', "hello"],  # two prove nothing
    ],
)
def test_texts_that_people_quote_are_no_csv(tmp_path: Path, cells: list[str]) -> None:
    body = "\n".join(["text\tlabel", *(f"{cell}\tbad" for cell in cells), ""])
    assert load(tmp_path, body, "tsv").misquoted == frozenset()
