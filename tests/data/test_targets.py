"""Rows of generation tasks: targets are checked as texts, and never counted or told."""

from pathlib import Path

import pytest

from ptpipeline.data.snapshot import load_split, take_snapshot
from ptpipeline.data.sources import read_rows
from ptpipeline.data.validation import check_rows
from ptpipeline.errors import DataError
from ptpipeline.records.data import SPLITS
from ptpipeline.storage import FolderStore
from tests.data.declared import generating, rows_of


def test_rows_keep_their_targets_as_they_stand() -> None:
    found = check_rows(generating(), rows_of(("a", " One. "), ("b", "two")))
    assert [row.label for row in found.rows] == [" One. ", "two"]
    assert [check.name for check in found.checks] == [
        "encoding",
        "empty_text",
        "duplicate",
        "conflicting_label",
        "split_overlap",
        "near_duplicate",
    ]


def test_rows_without_a_sound_target_are_left_out() -> None:
    found = check_rows(generating(), rows_of(("a", "one"), ("b", " "), ("c", None), ("d", "\udcff")))
    assert [row.label for row in found.rows] == ["one"]
    assert {check.name: check.count for check in found.checks if check.count} == {"encoding": 1, "empty_text": 2}


def test_a_text_with_two_targets_is_left_out() -> None:
    found = check_rows(generating(), rows_of(("a", "one"), ("a", "two"), ("b", "two"), ("b", "two")))
    assert [(row.text, row.label) for row in found.rows] == [("b", "two")]


def test_a_snapshot_counts_no_targets(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,answer\n" + "".join(f"text {i},secret {i}\n" for i in range(60)))
    store = FolderStore(tmp_path / "store")
    snapshot = take_snapshot(generating(path), store, tmp_path / "home")
    rows = [row for split in SPLITS for row in load_split(store, snapshot, split)]
    assert sorted(row.label for row in rows) == sorted(f"secret {i}" for i in range(60))
    assert "secret" not in snapshot.model_dump_json()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('{"text": "a", "label": "b"}', "no column 'answer', which data.target names; the columns are text, label"),
        (
            '{"text": "a", "answer": 3}',
            "line 1: column 'answer', which data.target names, holds integers; expected text",
        ),
    ],
)
def test_a_column_that_holds_no_targets_is_named(tmp_path: Path, lines: str, expected: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines + "\n")
    with pytest.raises(DataError, match=expected):
        read_rows(generating(path, source={"format": "jsonl"}), tmp_path / "home")
