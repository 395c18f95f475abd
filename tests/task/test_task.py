"""Task files: what a wrong one is told, and what the shipped ones promise."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptpipeline.errors import NotFound, TaskFileError
from ptpipeline.task.folder import find_base_model, find_task, load_task, task_files

SHIPPED = Path(__file__).parents[2] / "tasks"

ONE = "{path: rows.csv, format: csv}"
GOOD = """\
name: reviews
base_model: tiny
data:
  source: {path: rows.csv, format: csv}
  text: text
  label: label
  split: {dev: 0.1, test: 0.2}
template: "{text}\\nSentiment:"
labels: {bad: " bad", good: " good"}
tune: {steps: 5}
gate: {metric: accuracy, minimum: 0.5}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "reviews.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message_of(folder: Path, text: str) -> str:
    path = written(folder, text)
    with pytest.raises(TaskFileError) as raised:
        load_task(path)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def test_a_good_file_loads(tmp_path: Path) -> None:
    task = load_task(written(tmp_path, GOOD))
    assert task.data.split.dev == 0.1
    assert task.tune.learning_rate == 0.01


def test_every_shipped_task_loads() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file() and path.name != "base_models.yaml"]
    names = [load_task(path).name for path in files]
    assert sorted(names) == ["movie-sentiment", "tweet-sentiment"]
    assert sorted(files) == task_files(SHIPPED)
    for path in files:
        assert find_base_model(SHIPPED, load_task(path).base_model).fingerprint


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        (
            "tune: {steps: 5}",
            "tune: {step: 5}",
            10,
            "tune.step: unknown field; allowed here: batch_size, dev_rows, encoder",
        ),
        (
            "  text: text\n",
            "  text: text\n  txet: b\n",
            6,
            "data.txet: unknown field; allowed here: checks, fields, label, slices, source, split, target, text",
        ),
        ("steps: 5", "steps: many", 10, "tune.steps: found 'many': expected a whole number"),
        (
            "{steps: 5}",
            "",
            10,
            "tune: found nothing: expected a mapping of fields; allowed here: batch_size, dev_rows,",
        ),
        (
            "{path: rows.csv, format: csv}",
            "rows.csv",
            4,
            "found 'rows.csv': expected a mapping of fields; allowed here: c",
        ),
        ("steps: 5", "steps: 0", 10, "tune.steps: found 0: Input should be greater than or equal to 1"),
        ("steps: 5", "learning_rate: .inf", 10, "tune.learning_rate: found inf: Input should be a finite number"),
        (
            "steps: 5",
            "init: {txt: a}",
            10,
            "tune.init: found {'txt': 'a'}: expected uniform, xavier, sampled_vocab, class_labels, champion, "
            "{text: WORDS}",
        ),
        (
            "format: csv",
            "format: xls",
            4,
            "data.source.format: found 'xls': Input should be 'csv', 'tsv', 'jsonl' or 'parquet'",
        ),
        ("path: rows.csv", f"path: rows.csv, sha256: '{'0a' * 32}'", 4, "`sha256` is that of the archive"),
        ("path: rows.csv", "package: a==1, member: a, sha256: '0a'", 4, "data.source.sha256: found '0a'"),
        ("path: rows.csv, ", "", 4, "give one place of the rows, path, glob, package, s3, sql or hub; found none"),
        ("path: rows.csv", "path: rows.csv, glob: a*", 4, "found path and glob"),
        ("path: rows.csv", "path: https://a/rows.csv", 4, "`path` names local files, found an address, https://: "),
        ("path: rows.csv", "path: [a.csv, a.csv]", 4, "`path` lists a file twice"),
        ("path: rows.csv", "path: []", 4, "data.source.path: found []: List should have at least 1 item"),
        ("path: rows.csv", "package: vader, member: a", 4, "data.source.package: found 'vader'"),
        ("label: label", "label: {column: a, bins: {bad: [1, low]}}", 6, "data.label.bins.bad.1: found 'low'"),
        ("label: label", "label: {column: a, bins: {bad: [1, 0]}}", 6, "low 1 is above high 0"),
        ("label: label", "label: {column: a, bin: {bad: [1, 2]}}", 6, "data.label.bins: this field is required"),
        ("label: label", "label: {column: a, bins: {bad: [1, 2]}}", 1, "names ['bad'], labels names ['bad', 'good']"),
        ("path: rows.csv", "glob: s3://a/*.csv", 4, "`glob` names local files, found an address, s3://: "),
        ("path: rows.csv", "path: file:///rows.csv", 4, "`path` names local files, found file: in front of one: write"),
        ("dev: 0.1", "dev: 0.8", 7, "dev + test = 1 leaves less than a tenth of the rows"),
        ("dev: 0.1", "dev: 0.1, reserve: 0.7", 7, "dev + test + reserve = 1 leaves less than a tenth of the rows"),
        ("dev: 0.1", "dev: 1.5", 7, "data.split.dev: found 1.5: Input should be less than 1"),
        ("dev: 0.1", "dev: [dev]", 7, "name it as `column`"),
        ("dev: 0.1", "column: part, train: [train], dev: 0.1", 7, "`column: part` states the splits: list its values"),
        ("dev: 0.1", "column: part, train: [[a]], dev: 0.1", 7, "data.split.train.0: found ['a']"),
        ("dev: 0.1, test: 0.2", "column: a, train: [x], dev: [y], test: [x]", 7, "is listed twice"),
        (
            "dev: 0.1, test: 0.2",
            "column: a, train: [x], test: [y], dev: 0.95",
            7,
            "dev = 0.95 leaves less than a tenth",
        ),
        ("dev: 0.1, test: 0.2", "column: a, train: [x], test: [y], group: b", 3, "the source gives the splits: remove"),
        ("dev: 0.1", "column: part, train: a, dev: 0.1", 7, "split.train: found 'a': expected a list, as [one, two]"),
        ("text: text", "fields: [a]", 5, "data.fields: found ['a']: expected names with values, as {name: value}"),
        ("dev: 0.1", "on_overlap: keep, dev: 0.1", 3, "here they are cut by hash: remove it"),
        ("{path: rows.csv, format: csv}", f"{{train: {ONE}, tset: {ONE}}}", 4, "source.test: this field is required"),
        ("{path: rows.csv, format: csv}", f"{{train: {ONE}, test: {ONE}, eval: {ONE}}}", 4, "here: dev, test, train"),
        (
            "{path: rows.csv, format: csv}",
            f"{{train: {ONE}, test: {{pth: a}}}}",
            4,
            "data.source.test.pth: unknown field",
        ),
        ("{path: rows.csv, format: csv}", f"{{train: {ONE}, test: {ONE}}}", 3, "`split.test` is a share of rows, but"),
        (", format: csv}", "}", 4, "`format` is missing: csv, tsv, jsonl or parquet"),
        ("format: csv}", "format: csv, pth: b}", 4, "data.source.pth: unknown field; allowed here: columns, config"),
        ('good: " good"', 'good: " bad"', 9, "two labels have the same words"),
        (
            "metric: accuracy, ",
            "metric: recall, ",
            11,
            "gate.metric: found 'recall': Input should be 'accuracy', 'macro_f1', 'mcc', 'exact_match', "
            "'token_f1', 'rouge_l', 'bleu' or 'chrf'",
        ),
        ("base_model: tiny", "base-model: tiny", 2, "missing; 'base-model' is an unknown field: correct its name"),
        ("template: ", "tempalte: ", 8, "template: this field is required and missing; 'tempalte' is an unknown field"),
        ("dev: 0.1", "train: 0.8, dev: 0.1", 7, "split.train: found 0.8: the rows that are not in another split train"),
        ("dev: 0.1", "dev: 10%", 7, "data.split.dev: found '10%': expected a number, as 0.1"),
        ("steps: 5", "steps: 1k", 10, "tune.steps: found '1k': expected a whole number, as 100"),
        ("path: rows.csv", "s3: {url: s3://Rows/a}", 4, "a bucket's name has at least three small letters, digits"),
        ("gate:", "schedule: {cron: '@daily'}\ngate:", 11, "found '@daily': expected minute, hour, day of month"),
        ("gate:", "schedule: {cron: '0 0 2 * * *'}\ngate:", 11, "found '0 0 2 * * *': expected minute, hour, day of"),
        ("base_model: tiny\n", "", 1, "base_model: this field is required and missing"),
        (
            "gate:",
            "schedule: {cron: '0 2 * * *', timezone: Asia/Soul}\ngate:",
            11,
            "schedule.timezone: found 'Asia/Soul'",
        ),
        ("gate:", "schedule: {cron: nightly}\ngate:", 11, "schedule.cron: found 'nightly'"),
        (
            "gate:",
            "schedule: {cron: '99 2 * * *'}\ngate:",
            11,
            "schedule.cron: found '99 2 * * *': Bad minute; expected minute, hour",
        ),
        ("gate:", "schedule: {cron: '0 0 31 2 *'}\ngate:", 11, "schedule.cron: found '0 0 31 2 *': Bad day-of-month"),
        ("gate:", "schedule:\n  timezone: UTC\ngate:", 11, "schedule.cron: this field is required and missing"),
        (
            "\ntemplate:",
            "\n  checks: {near_fields: [txt]}\ntemplate:",
            9,
            "data.checks.near_fields names 'txt', but the template has the field text: name one of them",
        ),
        (
            "\ntemplate:",
            "\n  checks: {near_fields: [text], near_duplicate: off}\ntemplate:",
            8,
            "`near_fields` says what `near_duplicate` compares, but it is off: remove one of the two",
        ),
        (
            "\ntemplate:",
            "\n  checks: {duplicate: maybe}\ntemplate:",
            8,
            "data.checks.duplicate: found 'maybe': Input should be 'block', 'warn' or 'off'",
        ),
        (
            "\ntemplate:",
            "\n  checks: {duplicates: off}\ntemplate:",
            8,
            "data.checks.duplicates: unknown field; allowed here: conflicting_label, duplicate",
        ),
        (
            "tune: {",
            "promot: auto\ntune: {",
            10,
            "promot: unknown field; allowed here: aliases, approval_days, approvals, base_model, data, gate",
        ),
        (
            "path: rows.csv",
            "path: {a: rows.csv}",
            4,
            "data.source.path: found {'a': 'rows.csv'}: expected a text",
        ),
    ],
)
def test_an_error_names_line_field_found_and_allowed(
    tmp_path: Path, old: str, new: str, line: int, expected: str
) -> None:
    assert old in GOOD
    message = message_of(tmp_path, GOOD.replace(old, new))
    assert message.startswith(f":{line}: ")
    assert expected in message


GENERATES = (
    GOOD.replace("label: label", "target: answer")
    .replace('labels: {bad: " bad", good: " good"}', "generate: {max_new_tokens: 8}")
    .replace("accuracy", "rouge_l")
)


def test_a_task_may_answer_in_free_text(tmp_path: Path) -> None:
    task = load_task(written(tmp_path, GENERATES))
    assert task.generate is not None
    assert (task.generate.max_new_tokens, task.labels, task.data.target) == (8, {}, "answer")
    longer = load_task(written(tmp_path, GENERATES.replace("max_new_tokens: 8", "max_new_tokens: 9")))
    assert task.recipe_digest() != longer.recipe_digest()


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        (
            "max_new_tokens: 8",
            "max_new_tokens: 0",
            9,
            "generate.max_new_tokens: found 0: Input should be greater than or equal to 1",
        ),
        ("max_new_tokens: 8", "max_new_tokens: 1025", 9, "less than or equal to 1024"),
        ("max_new_tokens: 8", "max_tokens: 8", 9, "generate.max_tokens: unknown field; allowed here: max_new_tokens"),
        ("target: answer", "label: answer", 9, "names its answer column as `data.target`, not `data.label`"),
        ("target: answer", "target: answer\n  label: label", 3, "name one column of answers"),
        ("  target: answer\n", "", 3, "name one column of answers"),
        (
            "generate: {max_new_tokens: 8}\n",
            "",
            1,
            "at least two labels, or `generate: {max_new_tokens: 64}` and `data.target`",
        ),
        (
            "generate: {max_new_tokens: 8}",
            'labels: {bad: " bad", good: " good"}',
            9,
            "`data.target` is the column of a task with `generate`",
        ),
        ("tune:", 'labels: {bad: " bad", good: " good"}\ntune:', 10, "remove one of the two"),
        (
            "rouge_l",
            "accuracy",
            11,
            "gate.metric is accuracy, but the task answers in free text: take one of exact_match, token_f1, "
            "rouge_l, bleu",
        ),
        ("{steps: 5}", "{method: ensemble, ensemble: {members: 2}}", 10, "which free text does not have"),
    ],
)
def test_the_two_kinds_of_task_do_not_mix(tmp_path: Path, old: str, new: str, line: int, expected: str) -> None:
    assert old in GENERATES
    message = message_of(tmp_path, GENERATES.replace(old, new))
    assert message.startswith(f":{line}: ")
    assert expected in message


def test_a_metric_of_texts_does_not_judge_labels(tmp_path: Path) -> None:
    assert "take one of accuracy, macro_f1" in message_of(tmp_path, GOOD.replace("metric: accuracy", "metric: bleu"))


@pytest.mark.parametrize(
    "template",
    ["{text.__class__}", "{text[0]}", "{text!r}", "{text:>9}", "{other}", "{}", "no field", "{text}{text}", "{text"],
)
def test_a_template_has_one_plain_text_field(tmp_path: Path, template: str) -> None:
    message = message_of(tmp_path, GOOD.replace("{text}\\nSentiment:", template))
    assert message.startswith(":8: template: found ")
    assert repr(template) in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "tune: [1\n", ":13: not valid YAML"),
        (GOOD.replace("  text: text", "\ttext: text"), ":5: not valid YAML: found character '\\t' that cannot start"),
        (GOOD + "name: reviews\n", ':12: not valid YAML: found duplicate key "name"'),
        ("", ":1: expected a mapping of fields, such as `name: reviews`, found nothing"),
        ("- a\n", ":1: expected a mapping of fields, such as `name: reviews`, found a list"),
        (GOOD + "made: 2020-13-99\n", ":12: made: unknown field"),
        ("[" * 1000, ":1: more than 4000 values"),
        ("name: \x07\n", ": not readable as YAML in UTF-8: unacceptable character"),
        ("name: !!python/object/apply:os.getcwd []\n", ":1: "),
    ],
)
def test_a_file_that_is_no_task_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert message_of(tmp_path, text).startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "fix"),
    [
        ("  text: text", "\ttext: text", "indent by blanks, not by tabs"),
        ("name: reviews\n", "name: reviews\nname: reviews\n", "leave one of them out"),
        ("path: rows.csv", 'path: "C:\\data"', "write a backslash in single quotes, or twice"),
        ("tune:", "---\nname: reviews\ntune:", "write each task in a file of its own"),
        ("  text: text", "   text: text", "check the indent, the blank behind each colon, and the quotes"),
        ("  text: text", "\u00a0\u00a0text: text", "line 5 has a sign that looks like a blank or a colon and is none"),
        (
            "base_model: tiny",
            "base_model\uff1atiny",
            "line 2 has a sign that looks like a blank or a colon and is none",
        ),
    ],
)
def test_what_is_no_yaml_is_told_with_what_to_do(tmp_path: Path, old: str, new: str, fix: str) -> None:
    assert fix in message_of(tmp_path, GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("good", "old", "new", "expected"),
    [
        (GOOD, "text: text", "text: label", "data.text names 'label', which is also the column of the answers"),
        (GOOD, "{text}", "{text} {label}", "{label} names 'label', which is also the column of the answers"),
        (GENERATES, "text: text", "text: answer", "data.text names 'answer', which is also the column of the answers"),
        (
            GOOD.replace("label: label", "label: {column: stars, bins: {bad: [1, 2], good: [3, 5]}}"),
            "  text: text\n",
            "  text: text\n  fields: {rating: stars}\n",
            "{rating} names 'stars', which is also the column of the answers",
        ),
    ],
)
def test_the_answer_never_stands_in_the_text(tmp_path: Path, good: str, old: str, new: str, expected: str) -> None:
    text = good.replace(old, new)
    if "{rating}" in expected:
        text = text.replace("{text}", "{text} {rating}")
    assert expected in message_of(tmp_path, text)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "reviews.yaml"
    path.write_bytes(GOOD.replace("Sentiment", "Gef\u00fchl").encode("latin-1"))
    with pytest.raises(TaskFileError, match=r"reviews\.yaml: not readable as YAML in UTF-8"):
        load_task(path)


def test_the_name_is_the_files_own(tmp_path: Path) -> None:
    text = "# note\n" + GOOD.replace("name: reviews", "name: other")
    assert message_of(tmp_path, text) == ":2: name: found 'other', expected the file's own name 'reviews'"


@pytest.mark.parametrize("name", ["review", "../reviews", "Reviews", ""])
def test_an_unknown_task_is_not_found(tmp_path: Path, name: str) -> None:
    written(tmp_path, GOOD)
    with pytest.raises(NotFound, match=r"reviews|lower-case"):
        find_task(tmp_path, name)


def test_a_name_of_any_length_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match=rf":1: {'x' * 200}\.\.\.: unknown field; allowed here: ") as raised:
        load_task(written(tmp_path, f"? {'x' * 5000}\n: 1\n{GOOD}"))
    assert len(str(raised.value)) < 1000


@given(st.text(max_size=40))
def test_no_text_ends_in_anything_but_a_task_file_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "reviews.yaml"
    path.write_bytes(text.encode(errors="replace"))
    with pytest.raises(TaskFileError):
        load_task(path)


def test_a_gate_policy_is_no_part_of_the_recipe(tmp_path: Path) -> None:
    one = load_task(written(tmp_path, GOOD))
    two = load_task(written(tmp_path, GOOD.replace("minimum: 0.5", "minimum: 0.6")))
    assert one.recipe_digest() == two.recipe_digest()
    assert one.policy_digest() != two.policy_digest()
