"""Labels of a task file: kept as they are written, with words of their own or the default ones."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ptpipeline.errors import TaskFileError
from ptpipeline.task.folder import load_task
from ptpipeline.task.labels import draft_words, find_beginnings
from ptpipeline.task.task import Task
from tests.task.test_task import GOOD, message_of, written

LABELS = 'labels: {bad: " bad", good: " good"}'

NULLS = ("null", "~", "NULL")

# Each would be another value if YAML, or Python, decided what it means.
RETYPED = [
    "true",
    "False",
    "yes",
    "NO",
    "on",
    "null",
    "~",
    "NULL",
    "01",
    "007",
    "1.0",
    "1.50",
    "0x1F",
    "0o17",
    "1e3",
    "1_000",
    ".5",
    "+1",
    "-0",
    ".inf",
    ".nan",
    "2024-05-01",
    "2024-13-99",
    "12:30:45",
    "2024-05-01T10:00:00Z",
    "=",
]


def load(folder: Path, labels: str, old: str = LABELS) -> Task:
    assert old in GOOD
    return load_task(written(folder, GOOD.replace(old, labels)))


@pytest.mark.parametrize("name", RETYPED)
def test_a_label_is_kept_as_it_is_written(tmp_path: Path, name: str) -> None:
    kept = {name: f" {name}", "other": " other"}
    assert load(tmp_path, f"labels: {{{name}: {name!r}, other: ' other'}}").labels == {**kept, name: name}
    assert load(tmp_path, f"labels: [{name}, other]").labels == kept
    assert load(tmp_path, f"labels:\n- {name}\n- other").labels == kept
    assert load(tmp_path, f"labels:\n  {name}:\n  other: null").labels == kept
    assert load(tmp_path, f"labels: {{{name}: , other: ~}}").labels == kept


@pytest.mark.parametrize("name", [name for name in RETYPED if name not in NULLS])
def test_the_words_of_a_label_are_kept_as_they_are_written(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, f"labels: {{a: {name}, b: b}}").labels == {"a": name, "b": "b"}


@pytest.mark.parametrize("name", RETYPED)
def test_a_bin_is_named_as_it_is_written(tmp_path: Path, name: str) -> None:
    text = GOOD.replace("label: label", f"label: {{column: 1, bins: {{{name}: [null, 1e2], other: [0x64, null]}}}}")
    task = load_task(written(tmp_path, text.replace(LABELS, f"labels: [{name}, other]")))
    assert task.data.label is not None
    assert not isinstance(task.data.label, str)
    assert (task.data.label.column, task.data.label.bins) == ("1", {name: (None, 100.0), "other": (100.0, None)})


@pytest.mark.parametrize("name", RETYPED)
def test_a_column_is_named_as_it_is_written(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, f"  text: text\n  slices: [{name}]\n", "  text: text\n").data.slices == [name]
    if name not in NULLS:  # a field that may be left out
        assert load(tmp_path, f"  text: {name}\n", "  text: text\n").data.text == name
    columns = load(tmp_path, f"format: csv, columns: [{name}, text]", "format: csv").data.source.columns
    assert columns == [name, "text"]


def test_a_null_is_no_name_if_a_field_may_be_empty(tmp_path: Path) -> None:
    assert load(tmp_path, "dev: 0.1, group: null", "dev: 0.1").data.split.group is None
    assert load(tmp_path, "dev: 0.1, group: 'null'", "dev: 0.1").data.split.group == "null"
    assert load(tmp_path, "text: 'null'", "text: text").data.text == "null"


@pytest.mark.parametrize(
    ("written_as", "value"), [("1e1", 10), ("0x0A", 10), ("1_0", 10), ("0o12", 10), ("10.0", 10), ("'10'", 10)]
)
def test_a_number_is_read_in_any_form_of_yaml(tmp_path: Path, written_as: str, value: int) -> None:
    task = load(tmp_path, f"steps: {written_as}, learning_rate: {written_as}", "steps: 5")
    assert (task.tune.steps, task.tune.learning_rate) == (value, float(value))


@pytest.mark.parametrize(
    ("labels", "line", "sentence"),
    [
        ("labels: {1: ' one', '1': ' uno', 2: ' two'}", 9, 'found duplicate key "1"'),
        ("labels: {true: ' a', 'true': ' b'}", 9, 'found duplicate key "true"'),
        ("labels: [1, '1']", 9, "the label '1' is listed twice"),
        ("labels: [a, '']", 9, "a label needs a name"),
        ("labels: [a, ]", 9, "at least two labels"),
        ("labels:\n- a\n-\n", 11, "labels.1: found nothing: expected a text"),
        ("labels: {a: ' x', b: ' x'}", 9, "two labels have the same words: 'a' and 'b' both ' x'"),
        ("labels: [a, ' a']", 9, "two labels have the same words: 'a' and ' a' both ' a'"),
        ("labels: {a: '', b: ' b'}", 9, "leave them out for the label's own name"),
        ("labels: {a: [x], b: ' b'}", 9, "labels.a: found ['x']: expected a text"),
        ("labels: words", 9, "labels: found 'words'"),
        (f"labels: {[f'l{number}' for number in range(101)]}", 9, "at most 100 items"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(tmp_path: Path, labels: str, line: int, sentence: str) -> None:
    message = message_of(tmp_path, GOOD.replace(LABELS, labels))
    assert message.startswith(f":{line}: ")
    assert sentence in message


def test_an_error_names_a_label_with_brackets(tmp_path: Path) -> None:
    assert message_of(tmp_path, GOOD.replace(LABELS, "labels:\n  'a[1]': ' a'\n  'b[2]': [x]")).startswith(
        ":11: labels.b[2]: found ['x']"
    )


def test_labels_that_differ_in_case_are_two(tmp_path: Path) -> None:
    assert load(tmp_path, "labels: [true, True]").labels == {"true": " true", "True": " True"}


def test_a_hundred_labels_load(tmp_path: Path) -> None:
    names = [f"intent-{number}" for number in range(100)]
    assert list(load(tmp_path, f"labels: {names}").labels) == names


def test_default_words_are_part_of_the_recipe_as_if_they_were_written(tmp_path: Path) -> None:
    short, long = load(tmp_path, "labels: [bad, good]"), load(tmp_path, LABELS)
    assert (short.recipe_digest(), short.policy_digest()) == (long.recipe_digest(), long.policy_digest())


def test_words_that_begin_others_are_found() -> None:
    assert find_beginnings({"a": " no", "b": " none", "c": " yes"}) == [("a", "b")]


@pytest.mark.parametrize(
    ("labels", "end"),
    [
        (["bad", "good"], ""),
        (["pos", "positive"], "."),
        (["1", "10", "2"], "."),
        (["a", "a."], ";"),
        (["1", "1.5", "10"], ";"),
    ],
)
def test_of_words_that_are_drafted_none_begins_another(labels: list[str], end: str) -> None:
    words = draft_words(labels)
    assert words == {label: f" {label}{end}" for label in labels}
    assert find_beginnings(words) == []


scalars = st.sampled_from(RETYPED) | st.integers().map(str) | st.floats().map(str) | st.text("abc019.-_ex", min_size=1)


@given(st.lists(scalars, min_size=2, max_size=6, unique=True))
def test_what_any_writer_of_yaml_quotes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "reviews.yaml"
    plain: dict[str, Any] = {**YAML(typ="safe").load(GOOD), "labels": {name: f" {name}" for name in names}}
    with path.open("w") as file:
        YAML(typ="safe").dump(plain, file)
    try:
        assert load_task(path).labels == plain["labels"]
    except TaskFileError as error:
        assert "same words" in str(error)  # noqa: PT017
