"""Near duplicates share a split, or are left out of one."""

import hashlib
from typing import Any

import pytest

from ptpipeline.data.rows import CheckedRows, split_of
from ptpipeline.data.sources import SourceRows
from ptpipeline.data.validation import check_rows
from ptpipeline.errors import DataError
from ptpipeline.records.data import DataCheck
from ptpipeline.task.data import SplitSpec
from tests.data.declared import LENIENT, declared, rows_of
from tests.data.test_rows import checked, record, spread

PHRASES = [
    "the acting is wooden and the plot goes nowhere",
    "what a lovely warm film for all of the family",
    "I would not watch this again for any money",
]


NEARLY = [phrase + ending for phrase in PHRASES for ending in ("", "!", "!!!", "...", " :)", " ?")]


def near(outcome: CheckedRows) -> DataCheck:
    return record(outcome, "near_duplicate")


def test_near_duplicates_share_a_split() -> None:
    outcome = checked(rows_of(*[(text, "good") for text in NEARLY], *spread(40)), {})
    assert [len({row.split for row in outcome.rows[start : start + 6]}) for start in (0, 6, 12)] == [1, 1, 1]
    assert (near(outcome).outcome, len(outcome.rows)) == ("warned", len(NEARLY) + 40)


def test_near_duplicates_may_go_their_own_way() -> None:
    outcome = checked(rows_of(*[(text, "good") for text in NEARLY]), {"near_duplicate": "off"})
    assert [row.split for row in outcome.rows] == [
        split_of(row.normal, SplitSpec(dev=0.2, test=0.2)) for row in outcome.rows
    ]
    assert near(outcome).outcome == "off"


def test_near_duplicates_may_block() -> None:
    with pytest.raises(
        DataError, match="check near_duplicate found 18: rows 1, 2, 3 and more share the split"
    ) as raised:
        checked(rows_of(*[(text, "good") for text in NEARLY]), {"near_duplicate": "block"})
    assert "acting" not in str(raised.value)


def test_the_labels_of_near_duplicates_decide_nothing() -> None:
    one, two = (
        checked(rows_of(*[(text, label) for text, label in zip(NEARLY, labels * 9, strict=True)]), {})
        for labels in (["good", "bad"], ["bad", "good"])
    )
    assert [row.split for row in one.rows] == [row.split for row in two.rows]


def test_a_row_that_is_left_out_still_speaks_for_its_cluster() -> None:
    everything = checked(rows_of(*[(text, "good") for text in NEARLY]), {})
    where = {row.normal: row.split for row in everything.rows}
    for gone in range(len(NEARLY)):
        outcome = checked(
            rows_of(*[(text, "ugly" if n == gone else "good") for n, text in enumerate(NEARLY)]),
            {"unknown_label": "warn"},
        )
        assert all(where[row.normal] == row.split for row in outcome.rows)


def test_rows_of_a_template_stay_apart_and_are_counted() -> None:
    rows = [
        (f"your order number {number} has left our house and is on its way to you", "good")
        for number in range(100, 160)
    ]
    outcome = checked(rows_of(*rows), {})
    assert near(outcome).detail == "60 rows of a template, too many for one split, stay where their own text puts them"
    assert len({row.split for row in outcome.rows}) == 3


def orders(count: int) -> list[tuple[str, str]]:
    """Rows of which each nearly repeats the others."""
    return [
        (f"your order {number} has left our house today and is on its way to you", "good") for number in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "others", "templated"), [(10, 0, False), (11, 0, True), (12, 228, False), (13, 228, True)]
)
def test_a_template_has_more_than_ten_texts_and_more_than_a_twentieth(count: int, others: int, templated: bool) -> None:
    unlike = [(hashlib.sha256(str(number).encode()).hexdigest(), "good") for number in range(others)]
    outcome = checked(rows_of(*orders(count), *unlike), {})
    assert near(outcome).count == count
    assert near(outcome).detail.startswith(f"{count} rows of a template") is templated


def grouped(*placed: tuple[str, str]) -> SourceRows:
    """Rows of (text, split): each in a group that goes to that split."""
    spec = SplitSpec(dev=0.2, test=0.2)
    group = {split_of(str(number), spec): number for number in range(100)}
    return rows_of(*[(text, "bad") for text, _ in placed], groups=[group[split] for _, split in placed])  # type: ignore[index]


def test_a_group_keeps_its_split_and_loses_what_nearly_stands_in_test() -> None:
    source = grouped(
        (PHRASES[0], "train"), (PHRASES[0] + "!!", "test"), (PHRASES[1], "train"), (PHRASES[0] + " :)", "dev")
    )
    outcome = checked(source, {}, split={"dev": 0.2, "test": 0.2, "group": "author"})
    assert [(row.number, row.split) for row in outcome.rows] == [(2, "test"), (3, "train")]
    assert (near(outcome).count, near(outcome).detail) == (2, "rows 1, 4")


def paired(*pairs: tuple[str, str, str]) -> SourceRows:
    premises, claims, labels = (list(column) for column in zip(*pairs, strict=True))
    return SourceRows("rows.csv", {"claim": claims, "premise": premises}, labels, None)


def splits_of(source: SourceRows, **checks: Any) -> tuple[list[str], DataCheck]:
    outcome = check_rows(declared(template="{premise} {claim}", checks={**LENIENT, **checks}, text=None), source)
    return [row.split for row in outcome.rows], record(outcome, "near_duplicate")


CLAIMS = [f"{word} number {place} stands here" for place, word in enumerate(("one", "two", "red", "sea", "hat", "cow"))]


def test_rows_whose_named_field_nearly_repeats_share_a_split() -> None:
    source = paired(
        *[(PHRASES[0] + "!" * n, claim, "bad") for n, claim in enumerate(CLAIMS)],
        *[(f"{word} is another premise", PHRASES[1], "bad") for word in ("fox", "elephant", "tree", "x")],
    )
    whole, before = splits_of(source)
    alike, check = splits_of(source, near_fields=["premise"])
    assert len(set(whole[:6])) > 1
    assert len(set(alike[:6])) == 1
    assert alike[6:] == whole[6:]
    assert check.count == before.count + 6


def test_a_field_without_text_joins_no_rows() -> None:
    rows = paired(("", PHRASES[0], "bad"), ("", PHRASES[1], "bad"), ("", PHRASES[2], "bad"))
    assert splits_of(rows, near_fields=["premise"], empty_text="off")[1].count == 0


def test_near_fields_join_what_is_near_in_any_way() -> None:
    rows = [(PHRASES[0], CLAIMS[0], "bad"), (PHRASES[0], PHRASES[1], "bad"), (PHRASES[2], PHRASES[1] + "?", "bad")]
    assert len(set(splits_of(paired(*rows), near_fields=["premise", "claim"])[0])) == 1
    shuffled = splits_of(paired(rows[2], rows[0], rows[1]), near_fields=["claim", "premise"])
    assert shuffled[1].count == 3


def test_near_duplicates_within_a_split_of_groups_stay() -> None:
    source = grouped((PHRASES[0], "train"), (PHRASES[0] + "!!", "train"), (PHRASES[1], "test"))
    assert len(checked(source, {}, split={"dev": 0.2, "test": 0.2, "group": "author"}).rows) == 3
