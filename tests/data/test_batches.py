"""Grouping by length: every row once, within the budget, in a fixed order."""

from hypothesis import given
from hypothesis import strategies as st

from ptpipeline.data.batches import group_by_length

rows = st.lists(st.text(min_size=1, max_size=30), max_size=60)


@given(rows, st.integers(1, 100))
def test_every_row_is_in_one_group_within_the_budget(found: list[str], tokens: int) -> None:
    groups = list(group_by_length(found, len, tokens))
    assert sorted(row for group in groups for row in group) == sorted(found)
    assert all(len(group) == 1 or len(group) * max(map(len, group)) <= tokens for group in groups)
    assert [row for group in groups for row in group] == sorted(found, key=len)


def test_a_group_is_filled_up_to_the_budget() -> None:
    assert list(group_by_length(["aa", "bb", "cc"], len, 6)) == [["aa", "bb", "cc"]]
