"""Which label a cell names, and what is said of labels that the task does not have."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from ptpipeline.data.sources import SourceRows, read_rows
from ptpipeline.data.validation import check_rows
from ptpipeline.errors import DataError
from ptpipeline.task.labels import find_beginnings
from ptpipeline.task.task import Task
from tests.data.declared import declared, rows_of

BINS = {"column": "label", "bins": {"bad": [None, 0], "good": [0, 1]}}


def task_of(*labels: str, **data: Any) -> Task:
    """A task with these labels."""
    task = declared(**data).model_dump(mode="json", exclude_unset=True)
    return Task.model_validate(task | {"labels": {label: f" {label}" for label in labels}})


def named(labels: list[Any], *allowed: str, kinds: tuple[str, ...] = ("text",), **codes: str) -> list[str]:
    """The labels of rows whose cells are these."""
    rows = rows_of(*[(f"text {number}", label) for number, label in enumerate(labels)])
    return [
        row.label for row in check_rows(task_of(*allowed), rows._replace(label_kinds=kinds, label_codes=codes)).rows
    ]


def class_file(path: Path, *names: str) -> str:
    """A file with one row of each class number, as `datasets` writes a column of these classes."""
    stated = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
    numbers = list(range(len(names)))
    table = pa.table({"text": [f"{path.name} {number}" for number in numbers], "label": numbers})
    pq.write_table(table.replace_schema_metadata({b"huggingface": stated.encode()}), path)
    return str(path)


def told(labels: list[Any], *allowed: str, kinds: tuple[str, ...] = ("text",), **data: Any) -> str:
    rows = rows_of(*[(f"text {number}", label) for number, label in enumerate(labels)])
    with pytest.raises(DataError, match="check unknown_label") as raised:
        check_rows(task_of(*allowed, **data), rows._replace(label_kinds=kinds))
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ---------------------------------------------------------------- which label


@pytest.mark.parametrize(
    ("kinds", "cell", "label", "other"),
    [
        (("booleans",), "true", "True", "False"),
        (("booleans",), "true", "TRUE", "FALSE"),
        (("booleans",), "true", "true", "false"),
        (("integers",), "1", "1.0", "0.0"),
        (("numbers",), "0.5", "0.50", "1"),
        (("integers", "text"), "1", "1", "0"),
    ],
)
def test_a_cell_that_is_no_text_is_found_as_a_person_writes_it(
    kinds: tuple[str, ...], cell: str, label: str, other: str
) -> None:
    assert named([cell], label, other, kinds=kinds) == [label]


def test_a_class_stands_for_its_number_if_all_files_number_the_classes_alike(tmp_path: Path) -> None:
    one, alike = class_file(tmp_path / "one", "neg", "pos"), class_file(tmp_path / "alike", "neg", "pos")
    turned = class_file(tmp_path / "turned", "pos", "neg")
    task = task_of("0", "1", source={"path": [one, alike], "format": "parquet"})
    assert [row.label for row in check_rows(task, read_rows(task, tmp_path)).rows] == ["0", "1", "0", "1"]
    task = task_of("0", "1", source={"path": [one, turned], "format": "parquet"})
    with pytest.raises(DataError, match=r"check unknown_label found 4: .*'neg' \(2 rows\), 'pos'"):
        check_rows(task, read_rows(task, tmp_path))


@pytest.mark.parametrize(("cell", "label"), [("True", "true"), ("1", "1.0"), ("01", "1"), (" a", "a"), ("A", "a")])
def test_a_cell_that_is_text_is_that_label_or_none(cell: str, label: str) -> None:
    assert "check unknown_label found 1" in told([cell], label, "b")


def test_a_label_of_its_own_comes_before_another_spelling() -> None:
    assert named(["1"], "1.0", "1", kinds=("integers",)) == ["1"]


def test_a_class_is_found_by_its_name_or_its_number() -> None:
    assert named(["neg", "pos"], "neg", "pos", neg="0", pos="1") == ["neg", "pos"]
    assert named(["neg", "pos"], "0", "1", neg="0", pos="1") == ["0", "1"]


def test_a_number_of_no_class_is_told_and_minus_one_is_no_label(tmp_path: Path) -> None:
    class_file(tmp_path / "rows.parquet", "bad", "good")
    table = pq.read_table(tmp_path / "rows.parquet")
    pq.write_table(table.set_column(1, "label", pa.array([-1, 7])), tmp_path / "rows.parquet")
    task = task_of("bad", "good", source={"path": str(tmp_path / "rows.parquet"), "format": "parquet"})
    assert read_rows(task, tmp_path).labels == [None, "7"]


def test_a_class_whose_number_is_no_label_is_unknown() -> None:
    with pytest.raises(DataError, match=r"check unknown_label found 1: row 2: .*'odd' \(1 row\)"):
        named(["neg", "odd"], "0", "1", neg="0", odd="2")


def test_integers_with_missing_ones_keep_their_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [1.0, 0.0, None]}), path)
    task = task_of(
        "0", "1", path=path, source={"format": "parquet"}, checks={"unknown_label": "warn", "rows_per_label": "off"}
    )
    assert [row.label for row in check_rows(task, read_rows(task, tmp_path)).rows] == ["1", "0"]


# ---------------------------------------------------------------- what is said


def test_the_labels_found_stand_beside_those_allowed() -> None:
    said = told(["Good", "Good", None, "", "good"], "good", "bad")
    assert "rows 1, 2, 3 and more: the column holds text: 'Good' (2 rows), no label (1 row), '' (1 row)" in said
    assert "allowed: 'good', 'bad'; " in said


def test_the_types_that_the_file_holds_are_said() -> None:
    assert "the column holds integers and text: '3' (1 row)" in told(["3"], "1", "2", kinds=("integers", "text"))


@pytest.mark.parametrize("sign", ["\u200b", "\u202e", "\x1b", "\xa0", "\n", "\udce9"])
def test_what_is_not_seen_is_written_out(sign: str) -> None:
    said = told([f"good{sign}"], "good", "bad")
    assert sign not in said
    assert (
        f"'good{sign.encode('unicode_escape').decode() if sign != chr(0x3164) else sign}'" in said or sign == "\u3164"
    )


def test_labels_of_other_letters_that_look_alike_are_written_out() -> None:
    """As macOS writes an accent behind its letter."""
    said = told(["cafe\u0301", "cafe\u0301", "th\u00e9"], "caf\u00e9", "bad")
    assert r"'cafe\u0301' (2 rows), 'th\xe9' (1 row); allowed: 'caf\xe9', 'bad'; " in said
    assert "'th\u00e9' (1 row); allowed: 'caf\u00e9', 'bad'; " in told(["th\u00e9"], "caf\u00e9", "bad")


def test_labels_of_another_script_that_look_alike_are_written_out() -> None:
    said = told(["positive"], "p\u043esitive", "bad")
    assert r"'positive' (1 row); allowed: 'p\u043esitive', 'bad'; " in said


def test_labels_of_every_script_are_readable() -> None:
    assert "'긍정' (1 row), '肯定' (1 row)" in told(["긍정", "肯定"], "good", "bad")


def test_at_most_five_labels_are_shown() -> None:
    said = told([f"label {number}" for number in range(20)], "good", "bad")
    assert said.count("(1 row)") == 5
    assert "and 15 more; allowed" in said


@pytest.mark.parametrize(
    "labels", [[f"value {number}" for number in range(51)], ["my name is Kim and I live here"], ["a" * 41]]
)
def test_what_reads_like_texts_is_not_shown(labels: list[str]) -> None:
    said = told(labels, "good", "bad")
    assert f"the column holds text: {len(labels)} different values, which may be no labels; allowed" in said
    assert "correct the source, or set data.checks.unknown_label to warn" in said
    assert labels[0] not in said


def test_a_label_that_is_not_utf8_asks_for_utf8() -> None:
    assert "; save the file as UTF-8 (\\udc.. stands for a byte that is not)" in told(["positiv\udce9"], "good", "bad")


def test_what_is_no_number_stands_beside_numbers() -> None:
    said = told(["0.5", "high"], "bad", "good", label=BINS)
    assert "the column holds text: 'high' (1 row); allowed: numbers; " in said
    assert "correct the source, or set" in said


# ---------------------------------------------------------------- what is advised


def follow(said: str, task: Task) -> Task:
    """The task with the line that the message gives."""
    line = re.search(r"write in the task (labels: \{.*\}), or set", said)
    assert line, said
    labels = YAML(typ="safe").load(line[1])["labels"]
    return Task.model_validate(task.model_dump(mode="json", exclude_unset=True) | {"labels": labels})


@pytest.mark.parametrize(
    "labels",
    [
        ["good", "bad", "neutral"],
        ["Good", "Bad"],
        ["good ", "bad "],
        ["1", "0"],
        ["true", "null", "no", "01", "2020-01-01"],
        ["it's", 'so "so"', "a: b", "#c", "{d}", "[e", "긍정", "\\"],
    ],
)
def test_the_line_to_write_makes_the_labels_fit(labels: list[str]) -> None:
    rows = rows_of(*[(f"text {number}", label) for number, label in enumerate(labels)])
    task = follow(told(labels, "good", "bad"), task_of("good", "bad"))
    assert [row.label for row in check_rows(task, rows).rows] == labels


def test_the_line_to_write_keeps_the_words_of_the_task() -> None:
    rows = rows_of(("a", "Good"), ("b", "fine"))
    task = Task.model_validate(
        task_of("good", "bad").model_dump(exclude_unset=True) | {"labels": {"good": " great", "bad": " poor"}}
    )
    with pytest.raises(DataError) as raised:
        check_rows(task, rows)
    assert follow(str(raised.value), task).labels == {"Good": " great", "fine": " fine"}


def test_the_line_to_write_has_no_words_that_begin_others() -> None:
    rows = rows_of(*[(f"text {number}", str(number)) for number in range(1, 12)])
    task = follow(told([str(number) for number in range(1, 12)], "1", "2"), task_of("1", "2"))
    assert find_beginnings(task.labels) == []
    assert len(check_rows(task, rows).rows) == 11


@pytest.mark.parametrize(("count", "advised"), [(20, True), (21, False)])
def test_a_line_to_write_has_at_most_twenty_labels(count: int, advised: bool) -> None:
    said = told([f"label {number}" for number in range(count)], "good", "bad")
    assert ("write in the task labels" in said) is advised


def test_no_line_is_written_of_labels_that_a_terminal_would_act_upon() -> None:
    assert "write in the task" not in told(["good", "a\u200bb"], "good", "bad")


def test_no_line_is_written_if_rows_lack_a_label(tmp_path: Path) -> None:
    assert "write in the task" not in told(["good", "bad", None], "good", "bad")


def test_rows_without_a_label_are_to_have_one(tmp_path: Path) -> None:
    for missing in (None, ""):
        assert "; give these rows a label, or set data.checks.unknown_label to warn" in told(
            ["good", missing], "good", "bad"
        )


def test_two_spellings_of_one_label_are_to_be_one() -> None:
    said = told(["good", "Good", "bad"], "good", "bad")
    assert "; give each label one spelling in the source, or set" in said


@pytest.mark.parametrize("code", ["1", "-1", "True"])
def test_numbers_of_classes_beside_their_names_are_no_more_labels(code: str) -> None:
    said = told(["good", "bad", code], "good", "bad")
    assert "give each label one spelling in the source" in said
    assert "write in the task" not in said


def test_warn_leaves_them_out_and_says_the_same(caplog: pytest.LogCaptureFixture) -> None:
    task = task_of("good", "bad", checks={"unknown_label": "warn", "rows_per_label": "off"})
    rows: SourceRows = rows_of(("a", "good"), ("b", "Good"))
    assert [row.label for row in check_rows(task, rows).rows] == ["good"]
    assert "row 2: the column holds text: 'Good' (1 row); allowed: 'good', 'bad'" in caplog.text


def test_a_label_that_is_the_text_of_a_row_is_not_shown() -> None:
    with pytest.raises(DataError) as raised:
        check_rows(task_of("good", "bad"), rows_of(("secret", "secret"), ("b", "good")))
    assert "1 different values, which may be no labels" in str(raised.value)
    assert "secret" not in str(raised.value)
