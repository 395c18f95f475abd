"""The rows of a file that `ptp predict --input` answers."""

import gzip
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli.app import read_lines
from flows.cli.options import naming_options, read_delimiter
from flows.cli.questions import read_questions, read_rows
from ptpipeline.errors import DataError, NotFound


def test_a_file_of_another_delimiter_says_what_to_give_and_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text;other\na, b;c\n")
    with pytest.raises(DataError, match='give --delimiter ";"') as told:
        read_rows(path, None, None, ["text"])
    assert "data.source" not in str(told.value)
    assert read_rows(path, None, ";", ["text"]).texts == [{"text": "a, b"}]


@pytest.mark.parametrize(
    ("name", "body", "options"),
    [
        ("rows.csv", '"text";"other"\n"a, b";"c"\n', (None, ";")),
        ("rows.csv", "text\tother\na, b\tc\n", (None, r"\t")),
        ("rows.csv", "text|other\na, b|c\n", (None, "|")),
        ("rows.tsv", '"text"\t"other"\n"a, b"\t"c"\n', ("csv", r"\t")),
        ("rows.tsv", 'text,other\n"a, b",c\n', ("csv", None)),
    ],
)
def test_the_options_that_a_message_names_read_the_file(
    tmp_path: Path, name: str, body: str, options: tuple[str | None, str | None]
) -> None:
    (tmp_path / name).write_text(body)
    with pytest.raises(DataError) as told:
        read_rows(tmp_path / name, None, None, ["text"])
    form, delimiter = options
    named = [f"--format {form}" if form else "", f'--delimiter "{delimiter}"' if delimiter else ""]
    assert f"give {' '.join(filter(None, named))}" in str(told.value)
    assert "data.source" not in str(told.value)
    assert read_rows(tmp_path / name, form, delimiter, ["text"]).texts == [{"text": "a, b"}]


@pytest.mark.parametrize(
    ("name", "body", "place"),
    [("rows.csv", 'text\n"a\nb"\n\nc\n', "line 5"), ("rows.jsonl", '{"text": "a"}\n\n{"text": "c"}\n', "line 3")],
)
def test_a_row_is_called_by_its_file_and_line(tmp_path: Path, name: str, body: str, place: str) -> None:
    (tmp_path / name).write_text(body)
    asked = read_rows(tmp_path / name, None, None, ["text"])
    assert (asked.texts[1], asked.place(2)) == ({"text": "c"}, f"{tmp_path / name}: {place}")


def test_a_quote_that_swallowed_rows_is_told(tmp_path: Path) -> None:
    rows = [f"words {number},{number}\n" for number in range(30)]
    (tmp_path / "rows.csv").write_text(f'text,id\n{"".join(rows[:3])}"{"".join(rows[3:])}last",1\n')
    with pytest.raises(DataError, match=r"line 5: .* swallowed the lines behind"):
        read_rows(tmp_path / "rows.csv", None, None, ["text"])


def test_a_json_file_is_read_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('{"text": "a"}\n')
    assert read_rows(tmp_path / "rows.json", None, None, ["text"]).texts == [{"text": "a"}]


def test_a_line_of_standard_input_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\nb\n")))
    asked = read_questions(["-"], [], None)
    assert (asked.texts[2], asked.place(3)) == ("b", "standard input, line 3")


def test_names_that_are_not_those_of_the_fields_are_told_with_what_to_do_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Text\na\n")
    with pytest.raises(DataError, match=r'which is a field of the template; .*rename the column "Text" in the file'):
        read_rows(path, None, None, ["text"])
    path.write_text("a\n")
    with pytest.raises(DataError, match="if the file has no header line, put their names in front"):
        read_rows(path, None, None, ["text"])


def test_no_version_is_measured_on_more_labels_so_none_are_advised() -> None:
    advice = 'correct the source, or write in the task labels: {"a": " a", "}, or": " b"}, or set data.checks.x to warn'
    with pytest.raises(DataError, match=r"^correct the source, or set data\.checks\.x to warn$"), naming_options():
        raise DataError(advice)


@pytest.mark.parametrize(("name", "told"), [("-", "standard input is no file of rows"), ("none.csv", "no such file")])
def test_a_file_that_is_not_there_is_told_before_a_model_is_loaded(name: str, told: str) -> None:
    with pytest.raises(NotFound, match=told):
        read_questions([], [], Path(name))


def test_a_pipe_is_no_file_of_rows_and_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(NotFound, match="is no regular file, such as a pipe or a device; name a file of rows"):
        read_rows(tmp_path / "rows.csv", None, None, ["text"])


def test_a_file_of_another_format_says_what_to_give_and_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('{"text": "a, b"}\n')
    with pytest.raises(DataError, match="give --format jsonl"):
        read_rows(path, None, None, ["text"])
    assert read_rows(path, "jsonl", None, ["text"]).texts == [{"text": "a, b"}]


@pytest.mark.parametrize(("form", "delimiter"), [("csv", ";;"), ("csv", '"'), ("jsonl", ";")])
def test_a_delimiter_that_is_none_is_one_sentence(tmp_path: Path, form: str, delimiter: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\na\n")
    with pytest.raises(DataError, match="--delimiter is one character between the fields of a csv"):
        read_rows(path, form, delimiter, ["text"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_lines_in_another_encoding_are_told_with_a_command_that_works(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """As PowerShell and Notepad write them; without a mark, each letter of UTF-16 has a NUL beside it."""
    body = "good film\ncaf\u00e9\n".encode(encoding)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(body)))
    with pytest.raises(DataError, match=r"standard input.* `iconv") as told:
        read_lines()
    command = re.search("`(iconv .*?)`", str(told.value))
    assert command
    done = subprocess.run(command[1].split(), input=body, capture_output=True, check=True).stdout
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(done)))
    assert read_lines() == ["good film", "caf\u00e9"]


def test_a_nul_within_a_line_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\0b\n\0\n")))
    assert read_lines() == ["a\0b", "\0"]


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("one two\nthree\u2028four\nfive\u2028six\n".encode(), ["one two", "three\u2028four", "five\u2028six"]),
        (b"a\x0cb\x0bc\x1cd\n\n \nlast", ["a\x0cb\x0bc\x1cd", "", " ", "last"]),
        (b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"]),
    ],
)
def test_a_line_feed_alone_ends_a_line(monkeypatch: pytest.MonkeyPatch, body: bytes, lines: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(body)))
    assert read_lines() == lines


def test_a_line_that_is_not_utf8_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"good film\ncaf\xe9 film\n")))
    with pytest.raises(DataError, match=r"standard input, line 2: not UTF-8 \(byte 0xe9 at place 4\)"):
        read_lines()


@pytest.mark.parametrize(
    ("body", "kind"),
    [(gzip.compress(b"good film"), "compressed by gzip"), (b"PK\x03\x04\x14\x00\xe9\xff", "a zip archive")],
)
def test_a_file_that_holds_no_lines_is_named_with_what_reads_it(
    monkeypatch: pytest.MonkeyPatch, body: bytes, kind: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(body)))
    with pytest.raises(DataError, match=f"standard input is {kind}, and no lines of text; give a file of rows with --"):
        read_lines()


@pytest.mark.parametrize(
    ("given", "sign"), [(None, None), (";", ";"), (r"\t", "\t"), (r"\u0001", "\x01"), ("\\", "\\")]
)
def test_a_delimiter_may_be_written_as_a_message_writes_it(given: str | None, sign: str | None) -> None:
    assert read_delimiter(given) == sign
