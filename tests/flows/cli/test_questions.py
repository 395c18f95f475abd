"""The rows of a file that `ptp predict --input` answers."""

from pathlib import Path

import pytest

from flows.cli.questions import read_rows
from ptpipeline.errors import DataError


def test_a_file_of_another_delimiter_says_what_to_give_and_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text;other\na, b;c\n")
    with pytest.raises(DataError, match='give --delimiter ";"') as told:
        read_rows(path, None, None, ["text"])
    assert "data.source" not in str(told.value)
    assert read_rows(path, None, ";", ["text"]) == [{"text": "a, b"}]


def test_a_file_of_another_format_says_what_to_give_and_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('{"text": "a, b"}\n')
    with pytest.raises(DataError, match="give --format jsonl"):
        read_rows(path, None, None, ["text"])
    assert read_rows(path, "jsonl", None, ["text"]) == [{"text": "a, b"}]


@pytest.mark.parametrize(("form", "delimiter"), [("csv", ";;"), ("csv", '"'), ("jsonl", ";")])
def test_a_delimiter_that_is_none_is_one_sentence(tmp_path: Path, form: str, delimiter: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\na\n")
    with pytest.raises(DataError, match="--delimiter is one character between the fields of a csv"):
        read_rows(path, form, delimiter, ["text"])
