"""What people's files look like: each is read whole, or told in one sentence."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ptpipeline.data.snapshot import load_split
from ptpipeline.errors import DataError
from ptpipeline.records.data import SPLITS
from ptpipeline.storage.folder import FolderStore
from tests.cases.case import Case, count, enter

# rows of the snapshot, or what the message says
READ = {
    "01-pandas-index": 240,
    "02-index-advice": 240,
    "03-index-advice-gen": 240,
    "04-nul-csv": 240,
    "109-mixed-eol": 240,
    "14-jsonl-mixed-label": 240,
    "25-brackets": 240,
    "26-brackets-wrong": 241,
    "34-ufffd-legit": 240,
    "35-surrogate-jsonl": 239,
    "47-huge-field": 241,
    "48-crlf-blank-end": 240,
    "52-quoted-newlines": 240,
    "60-pq-cat-label": 240,
    "76-pq-classlabel": 240,
}
TOLD = {
    "20-unclosed-quote": r"lines 12 to 102: text stands behind the quote .* if the quote in line 12 should close there",
    "33-latin1-label": r"lines 2, 3, 4 and more: .*'positiv\\udce9' \(111 rows\).*; save the file as UTF-8",
    "44-label-space": r"'negative ' \(129 rows\), 'positive ' \(111 rows\); allowed: 'negative', 'positive'",
    "45-label-case": r"'Negative' \(129 rows\), 'Positive' \(111 rows\); allowed: 'negative', 'positive'",
    "68-pq-bad-utf8": r"no row is left after the checks: encoding found 240 \(bytes that are not UTF-8\);",
    "72-pq-nan-group": r"data\.split\.group names is empty in rows 1, 4, 7 and more",
}


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Case]:
    return lambda name: enter(name, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", READ)
def test_every_row_is_read(case: Callable[[str], Case], name: str) -> None:
    assert count(case(name).ingest()) == READ[name]


@pytest.mark.parametrize("name", TOLD)
def test_one_sentence_tells(case: Callable[[str], Case], name: str) -> None:
    with pytest.raises(DataError, match=TOLD[name]) as raised:
        case(name).ingest()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["02-index-advice", "03-index-advice-gen"])
def test_the_header_line_is_no_row(case: Callable[[str], Case], name: str) -> None:
    entered = case(name)
    snapshot = entered.ingest()
    texts = {row.text for split in SPLITS for row in load_split(FolderStore(entered.folder / "store"), snapshot, split)}
    assert "text" not in texts


def test_text_behind_a_nul_is_kept(case: Callable[[str], Case]) -> None:
    entered = case("04-nul-csv")
    snapshot = entered.ingest()
    texts = {row.text for split in SPLITS for row in load_split(FolderStore(entered.folder / "store"), snapshot, split)}
    assert "script\0 ending actor and film script fine scene" in texts


@pytest.mark.parametrize("name", ["36-zero-width", "38-bidi"])
def test_a_text_behind_invisible_characters_is_a_duplicate(case: Callable[[str], Case], name: str) -> None:
    snapshot = case(name).ingest()
    assert {check.name: check.count for check in snapshot.checks}["duplicate"] == 240
    assert count(snapshot) == 240


def test_a_valid_replacement_character_is_no_fault(case: Callable[[str], Case]) -> None:
    checks = {check.name: check.count for check in case("34-ufffd-legit").ingest().checks}
    assert checks["encoding"] == 0


def test_half_of_a_surrogate_pair_is_counted_with_its_line(case: Callable[[str], Case]) -> None:
    checks = {check.name: check for check in case("35-surrogate-jsonl").ingest().checks}
    assert (checks["encoding"].count, checks["encoding"].detail) == (1, "line 8")


def test_texts_of_bytes_that_are_not_utf8_are_counted(
    case: Callable[[str], Case], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError):
        case("68-pq-bad-utf8").ingest()
    assert "check encoding found 240: rows 1, 2, 3 and more" in caplog.text


@pytest.mark.parametrize("name", ["44-label-space", "45-label-case"])
def test_the_line_to_write_makes_the_task_fit_the_file(case: Callable[[str], Case], name: str) -> None:
    entered = case(name)
    with pytest.raises(DataError) as raised:
        entered.ingest()
    advised = re.search(r"labels: \{.*\}", str(raised.value))
    assert advised
    file = f"tasks/c-{name.partition('-')[2]}.yaml"
    entered.change(file, 'labels: {negative: " negative", positive: " positive"}', advised[0])
    assert count(entered.ingest()) == 240


def test_a_quote_that_is_closed_gives_every_row(case: Callable[[str], Case]) -> None:
    entered = case("20-unclosed-quote")
    entered.change("d.csv", '"poor and a story very ending,', '"poor and a story very ending",')
    entered.change("d.csv", '"ending film lovely light actor,', '"ending film lovely light actor",')
    assert count(entered.ingest()) == 240


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_the_delimiter_that_a_message_names_reads_the_file(case: Callable[[str], Case], delimiter: str) -> None:
    entered = case("01-pandas-index")
    entered.change("d.csv", ",", delimiter)
    with pytest.raises(DataError, match="the columns are") as raised:
        entered.ingest()
    advised = re.search(r"set data\.source\.(delimiter: \"[^\"]+\")", str(raised.value))
    assert advised
    entered.change("tasks/c-pandas-index.yaml", "format: csv", f"format: csv, {advised[1]}")
    assert count(entered.ingest()) == 240


def test_a_right_text_of_several_lines_is_read_if_the_check_of_quotes_is_off(case: Callable[[str], Case]) -> None:
    entered = case("20-unclosed-quote")
    entered.change("d.csv", '"ending film lovely light actor,', 'ending film lovely light actor",')
    with pytest.raises(DataError, match=r"check quotes found 1: line 12; .* set data\.checks\.quotes to off"):
        entered.ingest()
    entered.change("tasks/c-unclosed-quote.yaml", "  split:", "  checks: {quotes: off}\n  split:")
    assert count(entered.ingest()) == 150
