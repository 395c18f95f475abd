"""Files of text that are laid out as people lay out tables: `ptp init` says what they are, and its advice works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.on_demand.layout import advise_layout
from flows.on_demand.sketch import look
from ptpipeline.errors import DataError
from tests.tiny import sentences

ROWS = sentences(20)


def draw(begin: str, row: str, end: str = "") -> str:
    return begin + "".join(f"{row.format(*pair)}\n" for pair in ROWS) + end


def read(path: Path) -> list[tuple[str | None, str | None]]:
    table = look(path, "csv", path.parent).table
    return list(zip(table.columns["text"].cells, table.columns["label"].cells, strict=True))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (draw("| text | label |\n|:-----|------:|\n", "| {} | {} |"), "drawn with bars"),
        (draw(" text | label\n------+-------\n", " {} | {}", "(20 rows)\n\n"), "drawn with bars"),
        (draw("+---+---+\n| text | label |\n+---+---+\n", "| {} | {} |", "+---+---+\n"), "drawn with bars"),
        (draw("┏━━━┳━━━┓\n┃ text ┃ label ┃\n┡━━━╇━━━┩\n", "│ {} │ {} │", "└───┴───┘\n"), "drawn with bars"),
        (draw("shape: (20, 2)\n┌──┬──┐\n│ text ┆ label │\n╞══╪══╡\n", "│ {} ┆ {} │", "└──┴──┘\n"), "drawn with bars"),
        (draw(" text │ label \n──────┼───────\n", " {} │ {}", "(20 rows)\n"), "drawn with bars"),
        (draw("+---+---+\n| text | label |\n+---+---+\n", "| {} | {} |", "+---+---+\n20 rows in set\n"), "drawn with"),
        (draw(f"{'text':<60}  label\n", "{:<60}  {}"), "fixed places"),
    ],
)
def test_a_drawn_table_is_told_with_a_command_that_makes_it_a_csv(tmp_path: Path, body: str, told: str) -> None:
    (tmp_path / "FILE").write_text(body)
    with pytest.raises(DataError, match=told) as raised:
        look(tmp_path / "FILE", "csv", tmp_path)
    command = str(raised.value).rpartition(" by: ")[2]
    python = re.sub("^python", sys.executable, command)
    subprocess.run(["bash", "-c", python], cwd=tmp_path, env=os.environ | {"LC_ALL": "C"}, check=True)
    assert read(tmp_path / "NEW") == ROWS


@pytest.mark.parametrize("header", ["text;label", "The text, as typed, with names;Label", "a, b|c;Label, kind"])
def test_the_delimiter_is_what_parts_the_rows_as_the_names(tmp_path: Path, header: str) -> None:
    rows = [f"{text}{', and so on' * (n % 5)};{label}" for n, (text, label) in enumerate(ROWS)]
    (tmp_path / "rows.csv").write_text("\n".join([header, *rows]))
    sketch = look(tmp_path / "rows.csv", None, tmp_path)
    assert (sketch.source.delimiter, list(sketch.table.columns)) == (";", header.split(";"))


def test_rows_may_end_before_the_last_columns(tmp_path: Path) -> None:
    """As Excel leaves out empty cells at the end of a row, far from the last one that is filled."""
    (tmp_path / "rows.csv").write_text(draw("text,label,note,by\n", "{},{}", "a good one,positive,so,me\n"))
    table = look(tmp_path / "rows.csv", None, tmp_path).table
    assert table.columns["text"].cells == [*(text for text, _ in ROWS), "a good one"]
    assert table.columns["note"].cells == [*[""] * len(ROWS), "so"]
    (tmp_path / "rows.csv").write_text(draw("text,label,note\n", "{},{}", "(20 rows)\n"))
    with pytest.raises(DataError, match="line 22 has 1 field, expected 3; if it is no row, delete the line"):
        look(tmp_path / "rows.csv", None, tmp_path)


def test_single_quotes_around_all_names_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(draw("'text','label'\n", "'{}','{}'"))
    with pytest.raises(DataError, match="fields stand in single quotes; write them in double quotes"):
        look(tmp_path / "rows.csv", None, tmp_path)


@pytest.mark.parametrize("begin", ['row "text" "label"\n', '"text" "label"\n'])
def test_what_r_writes_by_default_is_read_or_told(tmp_path: Path, begin: str) -> None:
    (tmp_path / "rows.txt").write_text(
        begin + "".join(f'"{n}" "{text}" "{label}"\n' for n, (text, label) in enumerate(ROWS))
    )
    if begin.startswith("row"):
        assert read(tmp_path / "rows.txt") == ROWS
    else:
        with pytest.raises(DataError, match="put `row` and the delimiter in front of the header line"):
            look(tmp_path / "rows.txt", "csv", tmp_path)


@pytest.mark.parametrize(
    ("title", "told"),
    [
        (
            "Reviews of 2024,\n",
            r"names one column \(Reviews of 2024\) and leaves 1 without a name: if it is a title, delete",
        ),
        ("Reviews of 2024\n", "one column.* if the first line is a title, delete it|delete what stands above it"),
    ],
)
def test_a_title_over_the_names_of_the_columns_is_told(tmp_path: Path, title: str, told: str) -> None:
    path, body = tmp_path / "rows.csv", draw("text,label\n", "{},{}")
    path.write_text(title + body)
    with pytest.raises(DataError, match=told):
        look(path, None, tmp_path)
    path.write_text(body)
    assert read(path) == ROWS


def test_json_under_the_name_of_a_table_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('[{"text": "a", "label": "b"}]')
    with pytest.raises(DataError, match=r"if the file holds JSON, set data\.source\.format: jsonl"):
        look(tmp_path / "rows.csv", None, tmp_path)


@pytest.mark.parametrize(
    "begin", ["[01/05/24, 10:{:02}:00] Ann: ", "{:02}:30:00 ann: ", "10:{:02}:59.5 ", "a,b: 2024-05-01T10:{:02}:00Z "]
)
def test_times_are_no_numbers_of_lines(begin: str) -> None:
    """As chats and logs begin."""
    lines = [f"{begin.format(hour)}{text},{label}\n" for hour, (text, label) in enumerate(ROWS)]
    assert advise_layout(lines, ["a", "b"], ["a", "b"]) is None


@pytest.mark.parametrize("signs", ["::", "@@@"])
def test_several_signs_that_part_columns_together_are_told_with_what_makes_them_one(tmp_path: Path, signs: str) -> None:
    """As MovieLens writes its tables."""
    (tmp_path / "FILE").write_text(draw(f"n{signs}text{signs}label\n", f"1{signs}{{}}{signs}{{}}"))
    with pytest.raises(DataError, match=f"if '{signs}' parts the columns, put a tab in its place by: ") as raised:
        read(tmp_path / "FILE")
    subprocess.run(["bash", "-c", str(raised.value).rpartition(" by: ")[2]], cwd=tmp_path, check=True)
    table = look(tmp_path / "NEW.tsv", None, tmp_path).table
    assert [table.columns["text"].cells[0], table.columns["label"].cells[0]] == list(ROWS[0])


@pytest.mark.parametrize("number", ["{:6}\t", "{}:", "my-rows.csv:{}:"])
def test_numbers_of_lines_are_told_with_a_command_that_takes_them_out(tmp_path: Path, number: str) -> None:
    """As `cat -n` and `grep -n` write them; a text may begin with a time."""
    rows = [(f"3:{minute} is late, a: b", label) for minute, label in zip(range(10, 70), "xy" * 30, strict=True)]
    lines = ["text,label", *(f'"{text}",{label}' for text, label in rows)]
    path = tmp_path / "rows.csv"
    path.write_text("".join(f"{number.format(place)}{line}\n" for place, line in enumerate(lines, 1)))
    with pytest.raises(DataError, match="each line begins with its number: take it out by: ") as raised:
        look(path, None, tmp_path)
    command = str(raised.value).partition("take it out by: ")[2].replace("FILE", "rows.csv").replace("NEW", "new.csv")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "new.csv").read_text().splitlines() == lines
    assert read(tmp_path / "new.csv") == rows


def test_numbers_that_do_not_rise_are_no_numbers_of_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1:text,label\n9:a,x\n3:b,y\n")
    assert look(tmp_path / "rows.csv", None, tmp_path).rows == 2


def test_a_first_line_that_is_not_utf8_is_no_title(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes("text,label\na,b\n".encode("cp037"))
    with pytest.raises(DataError, match="the first line is not UTF-8: save the file as UTF-8"):
        look(tmp_path / "rows.csv", None, tmp_path)


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_lines_of_fasttext_are_told_with_a_command_that_makes_a_tsv(tmp_path: Path, form: str) -> None:
    rows = [("a, \\ 'so' film", "good"), ('"bad" they said; twice', "bad")] * 3
    (tmp_path / "rows.txt").write_text("".join(f"__label__{label} {text}\n" for text, label in rows))
    with pytest.raises(DataError, match="the lines begin with labels as fastText writes them; write them") as raised:
        look(tmp_path / "rows.txt", form, tmp_path)
    command = str(raised.value).partition("as tsv by: ")[2]
    subprocess.run(["bash", "-c", command.replace("FILE", "rows.txt")], cwd=tmp_path, check=True)
    columns = look(tmp_path / "NEW.tsv", None, tmp_path).table.columns
    assert list(zip(columns["text"].cells, columns["label"].cells, strict=True)) == rows


def test_several_labels_of_fasttext_in_a_line_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("__label__a __label__b text\n__label__a text\n")
    with pytest.raises(DataError, match="of several labels in a line, the first becomes the label"):
        look(tmp_path / "rows.csv", None, tmp_path)


@pytest.mark.parametrize("sign", [",", ";"])
def test_lines_that_stand_in_quotes_as_a_whole_are_told(tmp_path: Path, sign: str) -> None:
    """As a sheet writes them whose rows stand in its first column."""
    lines = [f"text{sign}label", *(f"{text}{sign}{label}" for text, label in ROWS)]
    (tmp_path / "FILE").write_text("".join(f'"{line}"\n' for line in lines))
    with pytest.raises(DataError, match="each line stands in quotes as a whole: take it out of them by: ") as raised:
        look(tmp_path / "FILE", "csv", tmp_path)
    command = str(raised.value).rpartition(" by: ")[2].replace("python", sys.executable, 1)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert read(tmp_path / "NEW.csv") == ROWS
