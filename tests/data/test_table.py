"""Places in words, and the names of columns in messages."""

import pytest

from ptpipeline.data.table import Places, collect, is_utf8, tell_names


@pytest.mark.parametrize(
    ("rows", "words"), [([1], "line 2"), ([3, 1], "lines 2, 9"), ([1, 2, 3, 1], "lines 2, 2, 5 and more")]
)
def test_rows_are_named_by_their_lines(rows: list[int], words: str) -> None:
    assert Places("line", [2, 5, 9]).describe(rows) == words


def test_rows_of_a_table_are_named_by_their_numbers() -> None:
    assert Places().describe({4, 2}) == "rows 2, 4"


def test_repeated_short_cells_are_kept_once() -> None:
    cells: list[str | None] = []
    add = collect(cells)
    for number in range(4):
        add("".join(["lab", str(number % 2)]))
    assert cells == ["lab0", "lab1"] * 2
    assert len({id(cell) for cell in cells}) == 2


@pytest.mark.parametrize(
    ("text", "whole"), [("", True), ("\u00e9\ufffd\U0001f600", True), ("caf\udce9", False), ("\ud83d", False)]
)
def test_half_a_surrogate_pair_is_no_utf8(text: str, whole: bool) -> None:
    assert is_utf8(text) is whole


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["text", "label"], "text, label"),
        (["", " a", "b;c", "d\n", "제목"], r"'', ' a', 'b;c', 'd\n', 제목"),
        (["a row that is a text", "label"], "2, of which one is too long for a name; the first line may be a row"),
        ([f"c{number}" for number in range(22)], f"{', '.join(f'c{number}' for number in range(20))} and 2 more"),
    ],
)
def test_columns_are_listed(names: list[str], words: str) -> None:
    assert tell_names(names) == words
