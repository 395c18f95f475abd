"""Splits that the source gives: by a column, or by a source each."""

import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ptpipeline.data.rows import CheckedRows, split_of
from ptpipeline.data.snapshot import load_split, take_snapshot
from ptpipeline.data.sources import OpenSource, read_rows, source_key
from ptpipeline.data.validation import check_rows
from ptpipeline.errors import DataError, SettingsError
from ptpipeline.records.data import DataCheck, Snapshot
from ptpipeline.storage import FolderStore
from ptpipeline.task.data import SplitSpec
from ptpipeline.task.task import Task
from tests.data.declared import LENIENT, declared
from tests.tiny import sentences

LISTED: dict[str, Any] = {"column": "part", "train": ["train"], "dev": ["validation"], "test": ["test"]}
NEARLY = "we waited for an hour and the soup was cold, so we shall not come back here"


def columned(folder: Path, *rows: tuple[str, str, str], **data: Any) -> Task:
    """A task over rows of (part, text, label)."""
    path = folder / "rows.csv"
    path.write_text("".join(f'"{part}","{text}",{label}\n' for part, text, label in [("part", "text", "label"), *rows]))
    return declared(path, **{"split": LISTED, **data})


def checked(task: Task, folder: Path) -> CheckedRows:
    return check_rows(task, read_rows(task, folder / "home"))


def placed(outcome: CheckedRows) -> list[tuple[int, str]]:
    return [(row.number, row.split) for row in outcome.rows]


def test_a_number_names_a_value_of_a_split_and_a_truth_does_not() -> None:
    """A file may write the second as true, True, TRUE or 1."""
    assert SplitSpec.model_validate(LISTED | {"train": [0]}).train == ["0"]
    with pytest.raises(ValidationError, match="valid string"):
        SplitSpec.model_validate(LISTED | {"train": [True]})


def record(outcome: CheckedRows, name: str) -> DataCheck:
    (check,) = [check for check in outcome.checks if check.name == name]
    return check


def test_a_column_gives_the_splits(tmp_path: Path) -> None:
    task = columned(tmp_path, ("test", "a", "bad"), ("train", "b", "bad"), ("validation", "c", "bad"))
    assert placed(checked(task, tmp_path)) == [(1, "test"), (2, "train"), (3, "dev")]


def test_a_split_may_have_several_values_and_numbers(tmp_path: Path) -> None:
    split = LISTED | {"train": [0, "1"], "dev": [2], "test": [3]}
    task = columned(tmp_path, *[(str(n), f"text {n}", "bad") for n in (3, 2, 1, 0)], split=split)
    assert placed(checked(task, tmp_path)) == [(1, "test"), (2, "dev"), (3, "train"), (4, "train")]


def test_a_split_that_the_source_gives_has_no_share_to_be_raised(tmp_path: Path) -> None:
    """Of a split with too few rows of a label: here test is given, and dev is cut from the training rows."""
    split = {"column": "part", "train": ["train"], "test": ["test"], "dev": 0.05}
    rows = [("train", "a", "bad"), ("train", "b", "good"), ("test", "c", "bad")]
    checks = LENIENT | {"rows_per_label": "block", "min_rows_per_label": 1}
    with pytest.raises(DataError, match=r"good has 0 of at least 1 rows in test") as refused:
        checked(columned(tmp_path, *rows, split=split, checks=checks), tmp_path)
    assert "give more rows, raise the share of dev (data.split)" in str(refused.value)


def test_values_that_no_list_names_are_told_with_counts(tmp_path: Path) -> None:
    listed = [("train", "a", "bad"), ("test", "b", "bad"), ("validation", "c", "bad")]
    task = columned(tmp_path, *listed, ("extra", "d", "bad"), ("extra", "e", "bad"), ("", "f", "bad"))
    outcome = checked(task, tmp_path)
    assert len(outcome.rows) == 3
    assert (record(outcome, "unlisted_split").outcome, record(outcome, "unlisted_split").count) == ("warned", 3)
    assert record(outcome, "unlisted_split").detail == "rows of no listed split are left out: extra 2, no value 1"


def test_a_long_value_that_no_list_names_is_counted_and_not_shown(tmp_path: Path) -> None:
    listed = [("train", "a", "bad"), ("test", "b", "bad"), ("validation", "c", "bad")]
    outcome = checked(columned(tmp_path, *listed, ("private words, " * 4, "d", "bad")), tmp_path)
    assert record(outcome, "unlisted_split").detail == "rows of no listed split are left out: longer values 1"


def test_a_listed_value_that_no_row_has_is_refused_with_those_there(tmp_path: Path) -> None:
    task = columned(tmp_path, ("train", "a", "bad"), ("dev", "b", "bad"), ("test", "c", "bad"))
    with pytest.raises(
        DataError,
        match=r"no row has 'validation' in column 'part', which data\.split\.dev lists; its values are train \(1\), ",
    ):
        checked(task, tmp_path)


@pytest.mark.parametrize(
    ("value", "shown"), [("train ", "'train ' (1)"), ("train\u200b", r"'train\u200b' (1)"), ("", "no value (1)")]
)
def test_a_value_is_shown_with_what_nobody_sees(tmp_path: Path, value: str, shown: str) -> None:
    task = columned(tmp_path, (value, "a", "bad"), ("validation", "b", "bad"), ("test", "c", "bad"))
    with pytest.raises(DataError, match="no row has 'train'") as raised:
        checked(task, tmp_path)
    assert shown in str(raised.value)
    task = columned(
        tmp_path, ("train", "d", "bad"), (value, "a", "bad"), ("validation", "b", "bad"), ("test", "c", "bad")
    )
    detail = record(checked(task, tmp_path), "unlisted_split").detail
    assert detail == f"rows of no listed split are left out: {shown.replace('(1)', '1')}"


def test_a_missing_split_column_is_named(tmp_path: Path) -> None:
    task = columned(tmp_path, ("train", "a", "bad"), split=LISTED | {"column": "fold"})
    with pytest.raises(DataError, match=r"no column 'fold', which data\.split\.column names"):
        checked(task, tmp_path)


def test_a_wrong_split_column_shows_no_texts(tmp_path: Path) -> None:
    task = columned(tmp_path, ("train", NEARLY, "bad"), split=LISTED | {"column": "text"})
    with pytest.raises(DataError, match="its values are 1 texts") as raised:
        checked(task, tmp_path)
    assert "soup" not in str(raised.value)


def test_dev_and_reserve_are_cut_from_given_training_rows(tmp_path: Path) -> None:
    split = {"column": "part", "train": ["train"], "dev": 0.2, "test": ["test"], "reserve": 0.2}
    texts = [text for text, _ in sentences(300)]
    rows = [("train" if n % 3 else "test", text, "bad") for n, text in enumerate(texts)]
    outcome = checked(columned(tmp_path, *rows, split=split, checks={"near_duplicate": "off", **LENIENT}), tmp_path)
    spec = SplitSpec(dev=0.2, reserve=0.2).model_copy(update={"test": 0.0})
    for row in outcome.rows:
        assert row.split == (split_of(row.normal, spec) if rows[row.number - 1][0] == "train" else "test")
    assert {row.split for row in outcome.rows} == {"train", "dev", "test", "reserve"}


OVERLAPPING = (
    ("train", NEARLY, "bad"),
    ("test", NEARLY.upper(), "good"),
    ("train", NEARLY + "!!", "bad"),
    ("validation", "the staff was friendly", "good"),
    ("train", "the staff was friendly", "good"),
    ("train", "another text of its own", "good"),
    ("test", "a test row that stands alone", "good"),
)


def test_training_rows_that_stand_in_another_given_split_are_removed(tmp_path: Path) -> None:
    outcome = checked(columned(tmp_path, *OVERLAPPING), tmp_path)
    assert placed(outcome) == [(2, "test"), (4, "dev"), (6, "train"), (7, "test")]
    assert (record(outcome, "split_overlap").count, record(outcome, "split_overlap").detail) == (2, "lines 2, 6")
    assert (record(outcome, "near_duplicate").count, record(outcome, "near_duplicate").detail) == (1, "line 4")
    assert {record(outcome, name).outcome for name in ("split_overlap", "near_duplicate")} == {"warned"}


def test_overlaps_may_be_kept_and_are_told(tmp_path: Path) -> None:
    outcome = checked(columned(tmp_path, *OVERLAPPING, split=LISTED | {"on_overlap": "keep"}), tmp_path)
    assert len(outcome.rows) == len(OVERLAPPING)
    assert record(outcome, "split_overlap").detail == "lines 2, 6; kept, as data.split.on_overlap says"
    assert record(outcome, "near_duplicate").detail == "line 4; kept, as data.split.on_overlap says"


def test_what_repeats_within_a_split_goes_although_overlaps_are_kept(tmp_path: Path) -> None:
    rows = [*OVERLAPPING, ("train", "another text of its own", "good")]
    outcome = checked(columned(tmp_path, *rows, split=LISTED | {"on_overlap": "keep"}), tmp_path)
    assert len(outcome.rows) == len(OVERLAPPING)
    assert (record(outcome, "duplicate").count, record(outcome, "duplicate").detail) == (1, "line 9")


def test_a_check_that_is_off_is_off_between_given_splits_too(tmp_path: Path) -> None:
    checks = {"split_overlap": "off", "near_duplicate": "off"}
    outcome = checked(columned(tmp_path, *OVERLAPPING, checks={**LENIENT, **checks}), tmp_path)
    assert len(outcome.rows) == len(OVERLAPPING)
    assert {record(outcome, name).outcome for name in checks} == {"off"}


def test_overlaps_may_block(tmp_path: Path) -> None:
    task = columned(tmp_path, *OVERLAPPING, split=LISTED | {"on_overlap": "block"})
    with pytest.raises(
        DataError, match=r"check split_overlap found 2: lines 2, 6; .* set data\.split\.on_overlap to drop_train"
    ):
        checked(task, tmp_path)


def test_near_duplicates_within_a_given_split_stay(tmp_path: Path) -> None:
    rows = [("train", NEARLY, "bad"), ("train", NEARLY + "!!", "bad"), ("test", "x", "bad"), ("validation", "y", "bad")]
    assert len(checked(columned(tmp_path, *rows), tmp_path).rows) == 4


def test_rows_of_a_template_that_are_not_compared_are_told(tmp_path: Path) -> None:
    order = "your order number {} has left our house and is on its way to you"
    rows = [("train" if n % 2 else "test", order.format(100 + n), "bad") for n in range(60)]
    outcome = checked(columned(tmp_path, *rows, ("validation", "y", "bad")), tmp_path)
    assert len(outcome.rows) == 61
    assert (record(outcome, "template").outcome, record(outcome, "template").count) == ("warned", 60)


def test_a_given_test_row_stays_whatever_label_train_has(tmp_path: Path) -> None:
    rows = [("train", "same", "bad"), ("test", "same", "good"), ("train", "x", "bad"), ("validation", "y", "bad")]
    assert placed(checked(columned(tmp_path, *rows), tmp_path)) == [(2, "test"), (3, "train"), (4, "dev")]


# ---------------------------------------------------------------- a source per split


def per_split(folder: Path, **rows: list[tuple[str, str]]) -> Task:
    """A task with a source per split, over rows of (text, label)."""
    sources = {}
    for split, pairs in rows.items():
        path = folder / f"{split}.csv"
        path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in pairs))
        sources[split] = {"path": str(path), "format": "csv"}
    task = declared().model_dump(mode="json", exclude_unset=True)
    return Task.model_validate(task | {"data": task["data"] | {"source": sources, "split": {}}})


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


PAIRS = [(text, label.replace("positive", "good").replace("negative", "bad")) for text, label in sentences(120)]


def test_a_source_per_split_goes_to_its_split(tmp_path: Path, store: FolderStore) -> None:
    snapshot = take_snapshot(per_split(tmp_path, train=PAIRS[:60], dev=PAIRS[60:80], test=PAIRS[80:]), store, tmp_path)
    texts = {split: {row.text for row in load_split(store, snapshot, split)} for split in ("train", "dev", "test")}
    assert texts["test"] == {text for text, _ in PAIRS[80:]}
    assert texts["dev"] <= {text for text, _ in PAIRS[60:80]}
    assert texts["train"] <= {text for text, _ in PAIRS[:60]}
    assert snapshot.source == ", ".join(str(tmp_path / f"{split}.csv") for split in ("train", "dev", "test"))


def test_without_dev_it_is_cut_from_train(tmp_path: Path, store: FolderStore) -> None:
    snapshot = take_snapshot(per_split(tmp_path, train=PAIRS[:80], test=PAIRS[80:]), store, tmp_path)
    dev = {row.text for row in load_split(store, snapshot, "dev")}
    assert dev
    assert dev < {text for text, _ in PAIRS[:80]}


def snapshots(folder: Path, store: FolderStore, *tests: list[tuple[str, str]]) -> list[Snapshot]:
    found = []
    for test in tests:
        task = per_split(folder, train=PAIRS[:60], dev=PAIRS[60:80], test=test)
        found.append(take_snapshot(task, store, folder))
    return found


def test_new_test_rows_leave_what_trains_as_it_is(tmp_path: Path, store: FolderStore) -> None:
    one, two = snapshots(tmp_path, store, PAIRS[80:110], PAIRS[90:])
    assert (one.train, one.dev) == (two.train, two.dev)
    assert one.test != two.test
    assert one.source_key != two.source_key


def test_the_key_follows_each_source(tmp_path: Path) -> None:
    task = per_split(tmp_path, train=PAIRS[:60], test=PAIRS[80:])
    key = source_key(task, tmp_path)
    assert source_key(per_split(tmp_path, train=PAIRS[:60], test=PAIRS[80:]), tmp_path) == key
    assert source_key(per_split(tmp_path, train=PAIRS[:59], test=PAIRS[80:]), tmp_path) != key
    assert source_key(per_split(tmp_path, train=PAIRS[:60], test=PAIRS[81:]), tmp_path) != key


def test_a_row_to_train_one_for_dev_and_two_to_test_are_enough(tmp_path: Path, store: FolderStore) -> None:
    rows = [("train", "a", "bad"), ("validation", "b", "bad"), ("test", "c", "bad"), ("test", "d", "good")]
    found = take_snapshot(columned(tmp_path, *rows, checks={"rows_per_label": "off"}), store, tmp_path)
    assert [info.rows for info in found.splits().values()] == [1, 1, 2]


def test_a_given_split_without_rows_is_named(tmp_path: Path, store: FolderStore) -> None:
    with pytest.raises(DataError, match=r"1 rows fall into the test split, at least 2 are needed; give more rows$"):
        take_snapshot(per_split(tmp_path, train=PAIRS[:60], test=PAIRS[80:81]), store, tmp_path)


@pytest.mark.parametrize(
    ("test", "place"),
    [
        ({"path": "none.csv"}, "data.source.test.path: none.csv: no such file"),
        ({"path": "semi.csv"}, 'set data.source.test.delimiter: ";"'),
        ({"format": None, "path": None, "sql": {"url_env": "NO_SUCH", "query": "x"}}, "data.source.test.sql.url_env: "),
        ({"format": None, "path": None, "sql": {"url_env": "A_DB", "query": "x"}}, "data.source.test: sql:A_DB: "),
    ],
)
def test_a_setting_of_a_split_is_named_as_such(
    tmp_path: Path, test: dict[str, Any], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = per_split(tmp_path, train=PAIRS[:60], test=PAIRS[80:]).model_dump(mode="json", exclude_unset=True)
    (tmp_path / "semi.csv").write_text("text;label\na;bad\n")
    task["data"]["source"]["test"] |= test
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_DB", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises((DataError, SettingsError), match=re.escape(place)):
        OpenSource(Task.model_validate(task), tmp_path).read()


def test_a_value_that_is_not_utf8_is_written_out_where_it_is_counted(tmp_path: Path) -> None:
    rows = [("train", "a", "bad"), ("test", "b", "bad"), ("validation", "c", "bad"), ("caf\udce9\x1b", "d", "bad")]
    path = tmp_path / "rows.csv"
    body = "part,text,label\n" + "".join(",".join(row) + "\n" for row in rows)
    path.write_bytes(body.encode(errors="surrogateescape"))
    split = {"column": "part", "train": ["train"], "dev": ["validation"], "test": ["test"]}
    outcome = checked(declared(path, split=split, checks={"rows_per_label": "off"}), tmp_path)
    assert record(outcome, "unlisted_split").detail == r"rows of no listed split are left out: 'caf\udce9\x1b' 1"


def test_rows_of_two_queries_of_one_database_are_told_by_their_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = sqlite3.connect(tmp_path / "rows.db")
    database.execute("CREATE TABLE movies (text TEXT, label TEXT, part TEXT)")
    database.executemany("INSERT INTO movies VALUES (?, ?, 'train')", PAIRS[:80])
    database.executemany("INSERT INTO movies VALUES (?, 'dull', 'test')", [(text,) for text, _ in PAIRS[80:]])
    database.commit()
    database.close()
    monkeypatch.setenv("A_DB", f"sqlite:///{tmp_path}/rows.db")
    task = per_split(tmp_path, train=PAIRS[:2], test=PAIRS[:2]).model_dump(mode="json", exclude_unset=True)
    for split in ("train", "test"):
        query = f"SELECT text, label FROM movies WHERE part = '{split}'"
        task["data"]["source"][split] = {"sql": {"url_env": "A_DB", "query": query}}
    found = Task.model_validate(task)
    with pytest.raises(DataError, match=r"unknown_label found 40: data\.source\.test: sql:A_DB rows [0-9]"):
        check_rows(found, read_rows(found, tmp_path))
