"""Each condition that a task file's rows have to meet, by itself, and what just meets it."""

from pathlib import Path

import pytest

from ptpipeline.task.folder import load_task
from tests.task.test_task import GOOD, ONE, message_of, written

PATH, FORMAT, SPLIT = "path: rows.csv", "path: rows.csv, format: csv", "{dev: 0.1, test: 0.2}"
OF_THE_HUB = "`revision`, `config` and `split` are those of a `hub` data set"
LISTED = "{column: part, train: [a], test: [b], dev: [c]}"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (PATH, f"{PATH}, revision: {'a' * 40}", OF_THE_HUB),
        (PATH, f"{PATH}, config: plain", OF_THE_HUB),
        (PATH, f"{PATH}, split: train", OF_THE_HUB),
        (FORMAT, "hub: a/b, split: train", "`hub` needs the commit as `revision`"),
        (FORMAT, f"hub: a/b, revision: {'a' * 40}", "and the `split` to read"),
        (FORMAT, f"{PATH}, format: jsonl, columns: [text, label]", "file without header, not of jsonl"),
        (FORMAT, f"{PATH}, format: tsv, delimiter: ';'", "separates the fields of a csv file, not of tsv"),
        (PATH, "package: a==1", "`member` names the file inside `package`: give both or neither"),
        (PATH, f"{PATH}, member: a", "`member` names the file inside `package`: give both or neither"),
        (PATH, "s3: {url: s3://bucket/a.csv, endpoint: 'http://host'}", "an `endpoint` needs credentials of its own"),
        (SPLIT, "{dev: 0.1, test: 0.8}", "dev + test = 0.9 leaves less than a tenth"),
        (SPLIT, "{column: part, test: [b]}", "`column: part` states the splits: list its values"),
        ("  text: text", "  text: text\n  slices: [topic, topic]", "a slice column is listed twice"),
        ("  text: text", "  text: text\n  fields: {text: body}", "both name the column of {text}"),
        (
            f"{{{FORMAT}}}\n  text: text\n  label: label\n  split: {SPLIT}",
            f"{{train: {ONE}, test: {ONE}}}\n  text: text\n  label: label\n  split: {LISTED}",
            "the splits are given twice",
        ),
        (SPLIT, f"{LISTED}\n  checks: {{split_overlap: warn}}", "remove `checks.split_overlap`, or set it to off"),
        (SPLIT, f"{LISTED}\n  checks: {{near_duplicate: block}}", "remove `checks.near_duplicate`, or set it to off"),
    ],
)
def test_each_condition_is_told(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert expected in message_of(tmp_path, GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("label: label", "label: {column: score, bins: {bad: [null, 0], good: [1, 1]}}"),
        (SPLIT, "{dev: 0.1, test: 0.79}"),
        (SPLIT, LISTED),
        (SPLIT, "{column: part, train: [a], test: [b], dev: 0.1}"),
        (SPLIT, f"{LISTED}\n  checks: {{split_overlap: off, near_duplicate: off}}"),
        (SPLIT, "{column: part, train: [a], test: [b], dev: [c], on_overlap: keep}"),
        (FORMAT, f"{PATH}, format: tsv, columns: [text, label]"),
        (FORMAT, f"{PATH}, format: csv, columns: [text, label], delimiter: ';'"),
        (FORMAT, f"hub: a/b, revision: {'a' * 40}, split: train"),
        (f"{{{FORMAT}}}\n  text: text\n  label: label\n  split: {SPLIT}",
         f"{{train: {ONE}, test: {ONE}}}\n  text: text\n  label: label\n  split: {{dev: 0.2}}"),
    ],
)  # fmt: skip
def test_what_just_meets_the_conditions_is_read(tmp_path: Path, old: str, new: str) -> None:
    assert old in GOOD
    assert load_task(written(tmp_path, GOOD.replace(old, new))).name == "reviews"
