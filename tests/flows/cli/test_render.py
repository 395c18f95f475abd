"""Tables for people: how columns share the terminal."""

import pytest

from flows.cli.render import _column_widths, print_table

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
