"""Tables for people: how columns share the terminal."""

import pytest

from benchmarks.fixtures.prompts import a_request, a_task
from flows.cli.render import _column_widths, _print_report, print_table
from ptpipeline.evaluation.metrics import score_labels

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
