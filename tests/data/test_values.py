"""How numbers are written."""

import pytest

from ptpipeline.data.values import write_number


@pytest.mark.parametrize(
    ("digits", "written"),
    [
        ("1.0", "1"),
        ("-0.0", "0"),
        ("2.50", "2.5"),
        ("1e3", "1000"),
        ("9007199254740993", "9007199254740992"),
        ("1e22", "1e+22"),
        ("0.1", "0.1"),
        ("inf", "inf"),
        ("1" * 500, "1" * 500),
    ],
)
def test_a_number_is_written_in_its_shortest_form(digits: str, written: str) -> None:
    assert write_number(digits) == written
