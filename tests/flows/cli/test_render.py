"""Tables for people: how columns share the terminal."""

import pytest

from benchmarks.fixtures.prompts import a_request, a_task, an_artifact
from flows.cli.render import (
    VersionDetails,
    _column_widths,
    _print_report,
    answer_row,
    print_record,
    print_table,
    print_version,
)
from ptpipeline.evaluation.metrics import score_labels
from ptpipeline.records.serving import Answer
from ptpipeline.records.verdicts import Check
from ptpipeline.records.versions import PromptVersion

LINES = [["task", "answers"], ["movie-sentiment", "negative, positive"]]


def test_columns_that_fit_are_left_alone() -> None:
    assert _column_widths(LINES, 33) == [None, None]


def test_a_narrow_table_breaks_between_words_only() -> None:
    assert _column_widths(LINES, 32) == [15, 17]
    assert _column_widths(LINES, 24) == [15, 9]


def test_words_that_do_not_fit_are_broken() -> None:
    assert _column_widths(LINES, 23) == [None, None]


def test_a_column_that_the_first_row_lacks_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"task": "a", "status": "failed"}, {"task": "b", "status": "promoted", "tokens": 812}], as_json=False)
    assert "812" in capsys.readouterr().out


@pytest.mark.parametrize(("count", "rows"), [(8, 4), (9, 4 + 1 + 9)])
def test_the_scores_of_many_labels_are_rows(capsys: pytest.CaptureFixture[str], count: int, rows: int) -> None:
    names = [f"intent {number}" for number in range(count)]
    scores = score_labels(names, names, names)
    report = a_request(a_task()).report
    assert report is not None
    _print_report(report.model_copy(update={"prompt": scores, "zero_shot": scores, "majority": scores}))
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == rows
    assert all("intent 7" not in line for line in shown[:1]) is (count == 9)


def test_a_record_says_yes_no_and_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    print_record({"a": True, "b": False, "c": None, "d": 0.12345, "e": ["x"]}, as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["a", "yes"], ["b", "no"], ["c", "-"], ["d", "0.1235"], ["e", '["x"]']]


@pytest.mark.parametrize(("steps", "told"), [(10, True), (0, False)])
def test_a_version_tells_its_checks_and_its_training_unless_it_was_imported(
    capsys: pytest.CaptureFixture[str], steps: int, told: bool
) -> None:
    task = a_task()
    request, manifest = a_request(task, 1), an_artifact(task, 1).manifest
    assert request.verdict is not None
    checks = [
        Check(name="minimum", passed=True, observed="0.9", required="0.8"),
        Check(name="gain", passed=False, observed="0.1", required="0.2"),
        Check(name="robustness", passed=False, observed="31%", required="25%", policy="warn"),
    ]
    verdict = request.verdict.model_copy(update={"checks": checks, "passed": False})
    version = PromptVersion(
        task="mood", number=1, digest="d" * 64, verdict=None, passed=False, registered_at="2026-11-26T00:00:00+00:00"
    )
    tuned = request.tuned.model_copy(update={"steps": steps})
    print_version(VersionDetails(version, manifest, tuned, None, verdict), as_json=False)
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.strip()]
    marks = {row[0]: row[1] for row in rows if row[0] in {check.name for check in checks}}
    assert marks == {"minimum": "pass", "gain": "FAIL", "robustness": "warn"}
    assert ("kept step 10" in out) == told


def test_an_answer_stands_beside_its_text_or_all_its_fields() -> None:
    answer = Answer(label="good", probabilities={"good": 0.75, "bad": 0.25}, version="mood@1", digest="d" * 64)
    assert answer_row(answer, "a film")["text"] == "a film"
    row = answer_row(answer, {"topic": "film", "review": "lovely"})
    assert (row["probability"], row["text"]) == ("0.750", "film | lovely")


def test_a_blank_line_has_the_columns_of_the_others() -> None:
    good = Answer(label="good", probabilities={"good": 1.0}, version="mood@1", digest="d" * 64)
    blank = good.model_copy(update={"label": None, "probabilities": {}})
    assert list(answer_row(blank, "")) == list(answer_row(good, "a film"))
