"""The ingest checks, the labels and the splits."""

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptpipeline.data.rows import CheckedRows, normalise, split_of
from ptpipeline.data.sources import SourceRows
from ptpipeline.data.validation import check_rows
from ptpipeline.errors import DataError
from ptpipeline.records.data import DataCheck
from ptpipeline.task.data import SplitSpec
from tests.data.declared import LENIENT, declared, rows_of

BINS = {"column": "score", "bins": {"bad": [None, 0], "good": [0, 1]}}

# name of the check -> source rows, and the numbers of those that pass it
FAULTS: dict[str, tuple[SourceRows, list[int]]] = {
    "encoding": (rows_of(("caf\udce9", "good"), ("caf\ufffd", "good")), [2]),
    "empty_text": (rows_of(("a", "bad"), (" \t\u00a0", "good"), (None, "good"), ("", "bad")), [1]),
    "unknown_label": (rows_of(("a", "bad"), ("b", "Good"), ("c", None), ("d", " bad")), [1]),
    "duplicate": (rows_of(("A  b", "bad"), ("c", "bad"), ("a B ", "bad")), [1, 2]),
    "conflicting_label": (rows_of(("same", "bad"), ("other", "bad"), ("SAME", "good")), [2]),
}


def checked(source: SourceRows, policy: dict[str, str], **data: Any) -> CheckedRows:
    return check_rows(declared(checks={**LENIENT, **policy}, **data), source)


def record(outcome: CheckedRows, name: str) -> DataCheck:
    (check,) = [check for check in outcome.checks if check.name == name]
    return check


@pytest.mark.parametrize("name", FAULTS)
def test_warn_leaves_the_rows_out_and_counts_them(name: str) -> None:
    source, passing = FAULTS[name]
    outcome = checked(source, {name: "warn"})
    assert [row.number for row in outcome.rows] == passing
    assert record(outcome, name).count == len(source.fields["text"]) - len(passing)
    assert record(outcome, name).outcome == "warned"


@pytest.mark.parametrize("name", FAULTS)
def test_block_names_check_and_rows_but_no_text(name: str) -> None:
    source, passing = FAULTS[name]
    with pytest.raises(
        DataError, match=f"check {name} found {len(source.fields['text']) - len(passing)}: rows? "
    ) as raised:
        checked(source, {name: "block"})
    texts = [text for text in source.fields["text"] if text and len(text) > 2]
    assert not any(text in str(raised.value) for text in texts)


@pytest.mark.parametrize("name", sorted(set(FAULTS) - {"unknown_label"}))
def test_off_keeps_the_rows(name: str) -> None:
    source, _ = FAULTS[name]
    outcome = checked(source, {"duplicate": "off", "conflicting_label": "off", name: "off"})
    assert len(outcome.rows) == len(source.fields["text"])
    assert (record(outcome, name).count, record(outcome, name).outcome) == (0, "off")


@pytest.mark.parametrize("policy", ["warn", "off"])
@pytest.mark.parametrize("column", ["slices", "groups"])
def test_a_slice_or_group_of_bytes_that_are_not_utf8_is_a_row_of_such_bytes(column: str, policy: str) -> None:
    cells = {"slices": [("caf\udce9",), ("b",)], "groups": ["caf\udce9", "b"]}[column]
    split = {"dev": 0.2, "test": 0.2, **({"group": "shop"} if column == "groups" else {})}
    source = rows_of(("a", "bad"), ("b", "bad"))._replace(**{column: cells})
    outcome = checked(source, {"encoding": policy}, split=split, slices=["shop"] if column == "slices" else [])
    assert [row.number for row in outcome.rows] == ([2] if policy == "warn" else [1, 2])
    assert record(outcome, "encoding").count == (policy == "warn")
    assert all(text.isprintable() for row in outcome.rows for text in (*row.slices, row.split))


def test_texts_that_were_encoded_twice_are_told_and_stay() -> None:
    outcome = checked(rows_of(("d\u00c3\u00a9j\u00c3\u00a0", "bad"), ("a", "bad"), ("tr\u00c3\u00a8s", "good")), {})
    assert [row.number for row in outcome.rows] == [1, 2, 3]
    check = record(outcome, "encoded_twice")
    assert (check.count, check.outcome) == (2, "warned")
    assert check.detail.startswith("texts (rows 1, 3) stay, and read like UTF-8 that was taken for Windows-1252")


def test_unknown_labels_cannot_be_kept() -> None:
    with pytest.raises(DataError, match="3 rows have no label of the task"):
        checked(FAULTS["unknown_label"][0], {"unknown_label": "off"})


def test_clean_rows_pass_every_check() -> None:
    outcome = checked(rows_of(("a", "bad"), ("b", "good")), {})
    assert {check.outcome for check in outcome.checks} == {"ok", "off"}
    assert [check.name for check in outcome.checks] == [
        "encoding",
        "empty_text",
        "unknown_label",
        "duplicate",
        "conflicting_label",
        "split_overlap",
        "near_duplicate",
        "rows_per_label",
    ]


def test_a_message_gives_at_most_three_rows() -> None:
    with pytest.raises(DataError, match="found 5: rows 1, 2, 3 and more;"):
        checked(rows_of(*[("", "bad")] * 5), {"empty_text": "block"})


def test_no_row_left_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no row is left after the checks: empty_text found 1 \(a field without text"):
        checked(rows_of(("", "bad")), {})


def test_labels_that_are_numbers_are_compared_as_text() -> None:
    task = declared()
    task = task.model_copy(update={"labels": {"0": " no", "1": " yes"}})
    assert [row.label for row in check_rows(task, rows_of(("a", 0), ("b", "1"))).rows] == ["0", "1"]


# ---------------------------------------------------------------- bins


def test_bins_are_inclusive_and_the_first_wins() -> None:
    outcome = checked(rows_of(("a", "-3.5"), ("b", "0"), ("c", 0.5), ("d", "1")), {}, label=BINS)
    assert [row.label for row in outcome.rows] == ["bad", "bad", "good", "good"]


def test_both_ends_of_a_bin_lie_in_it() -> None:
    bins = {"column": "score", "bins": {"bad": [-1, 0], "good": [1, 2]}}
    outcome = checked(rows_of(("a", "-1"), ("b", "0"), ("c", 1), ("d", "2")), {}, label=bins)
    assert [row.label for row in outcome.rows] == ["bad", "bad", "good", "good"]


def test_rows_in_no_bin_are_left_out_and_counted() -> None:
    outcome = checked(rows_of(("a", "0"), ("b", "1.01")), {}, label=BINS)
    assert [row.number for row in outcome.rows] == [1]
    assert (record(outcome, "outside_bins").count, record(outcome, "outside_bins").outcome) == (1, "ok")


@pytest.mark.parametrize("value", ["high", "", None, "nan", float("nan"), "inf"])
def test_what_is_no_number_is_an_unknown_label(value: Any) -> None:
    with pytest.raises(DataError, match="check unknown_label found 1: row 2: the column holds text: "):
        checked(rows_of(("a", "0"), ("b", value)), {}, label=BINS)


# ---------------------------------------------------------------- splits


def spread(count: int = 60) -> list[tuple[str, str]]:
    return [(f"text {number}", "good" if number % 3 else "bad") for number in range(count)]


def test_splits_take_about_their_shares() -> None:
    spec = SplitSpec(dev=0.1, test=0.3)
    counts = Counter(split_of(f"text {number}", spec) for number in range(4000))
    assert counts["test"] == pytest.approx(1200, abs=120)
    assert counts["dev"] == pytest.approx(400, abs=80)


def test_a_seed_deals_anew() -> None:
    keys = [f"text {number}" for number in range(100)]
    one, two = ([split_of(key, SplitSpec(seed=seed)) for key in keys] for seed in (0, 1))
    assert one != two


def test_the_split_of_a_key_never_moves() -> None:
    spec = SplitSpec(dev=0.2, test=0.2)
    assert [split_of(f"text {number}", spec) for number in range(8)] == [
        "train",
        "train",
        "test",
        "train",
        "dev",
        "train",
        "train",
        "test",
    ]


@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.booleans(), st.booleans()),
        min_size=1,
        unique_by=lambda row: normalise(row[0]),
    )
)
def test_relabelling_never_moves_a_row(rows: list[tuple[str, bool, bool]]) -> None:
    policy = {"encoding": "off", "empty_text": "off"}
    names = ("bad", "good")
    before = checked(rows_of(*[(text, names[label]) for text, label, _ in rows]), policy)
    after = checked(rows_of(*[(text, names[label]) for text, _, label in rows]), policy)
    assert [(row.number, row.split) for row in before.rows] == [(row.number, row.split) for row in after.rows]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_reordering_never_moves_a_text(texts: list[str], dice: Random) -> None:
    policy = {"encoding": "off", "duplicate": "off", "empty_text": "off"}
    shuffled = dice.sample(texts, len(texts))
    before, after = (checked(rows_of(*[(text, "bad") for text in order]), policy) for order in (texts, shuffled))
    where = {row.normal: row.split for row in before.rows}
    assert {row.normal: row.split for row in after.rows} == where
    assert all(where[row.normal] == row.split for row in before.rows)


def test_a_group_stays_together() -> None:
    groups = [number // 10 for number in range(60)]
    split = {"dev": 0.3, "test": 0.3, "group": "author"}
    outcome = checked(rows_of(*spread(), groups=groups), {}, split=split)
    where: dict[int, set[str]] = {}
    for row in outcome.rows:
        where.setdefault(groups[row.number - 1], set()).add(row.split)
    assert all(len(splits) == 1 for splits in where.values())
    assert len(set.union(*where.values())) > 1


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.split\.group names is empty in rows 2, 3;"):
        checked(
            rows_of(("a", "bad"), ("b", "bad"), ("c", "bad"), groups=["x", None, ""]), {}, split={"group": "author"}
        )


@pytest.mark.parametrize("blank", ["", "  ", "\u200b", "\u2800", "\0", "\xa0\ufeff"])
def test_a_group_that_nobody_sees_is_an_empty_one(blank: str) -> None:
    rows = rows_of(("a", "bad"), ("b", "bad"), groups=["x", blank])
    with pytest.raises(DataError, match=r"data\.split\.group names is empty in row 2;"):
        checked(rows, {}, split={"group": "author"})


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "N/A", "null", "NULL", "None", r"\N", "<NA>", "NaT", "#N/A"])
def test_a_group_that_reads_like_a_missing_value_is_told(word: str, caplog: pytest.LogCaptureFixture) -> None:
    """As programs write what is missing into text: all these rows are one group, though nobody said so."""
    groups = ["x", word, word, "y"]
    outcome = checked(rows_of(*((f"text {n}", "bad") for n in range(4)), groups=groups), {}, split={"group": "author"})
    assert len(outcome.rows) == 4
    [note] = [check for check in outcome.checks if check.name == "missing_group"]
    assert (note.outcome, note.count) == ("warned", 2)
    assert note.detail.startswith(f"rows 2, 3 have the group '{word}'")
    assert "as a missing value is written; they stay together; leave the cell empty" in caplog.text


def test_groups_with_names_are_not_told() -> None:
    groups = ["nancy", "Nan Goldin", "0", "none of us"]
    outcome = checked(rows_of(*((f"text {n}", "bad") for n in range(4)), groups=groups), {}, split={"group": "author"})
    assert not any(check.name == "missing_group" for check in outcome.checks)


@pytest.mark.parametrize(
    "text", ["\u2800\u2800", "\0", "\x08\x7f\x1b", "\ufff9\ufffb", "\ufffc", "\u200b\u3164", " \u2060\x00 ", "\ufe0f"]
)
def test_a_text_in_which_nothing_is_seen_is_empty(text: str) -> None:
    checks = checked(rows_of(("a", "bad"), (text, "bad"), ("b", "good")), {"rows_per_label": "off"}).checks
    assert {check.name: check.count for check in checks}["empty_text"] == 1


@pytest.mark.parametrize("text", [".", "\U0001f600", "\u0301", "\ufffd", "a\0", "\ue000"])
def test_a_text_in_which_something_is_seen_is_none(text: str) -> None:
    checks = checked(rows_of(("a", "bad"), (text, "bad"), ("b", "good")), {"rows_per_label": "off"}).checks
    assert {check.name: check.count for check in checks}["empty_text"] == 0


def overlapping() -> SourceRows:
    spec = SplitSpec(dev=0.2, test=0.2)
    group = {split_of(str(number), spec): number for number in range(100)}
    return rows_of(
        ("same", "bad"),
        ("Same", "bad"),
        ("SAME", "bad"),
        ("other", "bad"),
        groups=[group["train"], group["test"], group["dev"], group["train"]],
    )


def test_an_overlap_blocks() -> None:
    with pytest.raises(DataError, match="check split_overlap found 2: rows 1, 3;"):
        checked(overlapping(), {"duplicate": "off"}, split={"dev": 0.2, "test": 0.2, "group": "author"})


def test_an_overlap_stays_in_test_only() -> None:
    policy = {"duplicate": "off", "split_overlap": "warn"}
    outcome = checked(overlapping(), policy, split={"dev": 0.2, "test": 0.2, "group": "author"})
    assert [(row.number, row.split) for row in outcome.rows] == [(2, "test"), (4, "train")]


def test_an_overlap_may_be_kept() -> None:
    policy = {"duplicate": "off", "split_overlap": "off"}
    outcome = checked(overlapping(), policy, split={"dev": 0.2, "test": 0.2, "group": "author"})
    assert [row.split for row in outcome.rows] == ["train", "test", "dev", "train"]


def test_of_reserve_and_dev_the_reserve_keeps_a_text() -> None:
    shares = {"dev": 0.2, "test": 0.2, "reserve": 0.2}
    group = {split_of(str(number), SplitSpec(**shares)): number for number in range(100)}  # type: ignore[arg-type]
    source = rows_of(("same", "bad"), ("same", "bad"), groups=[group["dev"], group["reserve"]])
    outcome = checked(source, {"duplicate": "off", "split_overlap": "warn"}, split={**shares, "group": "author"})
    assert [row.split for row in outcome.rows] == ["reserve"]


def test_too_few_rows_per_label_block() -> None:
    with pytest.raises(
        DataError,
        match=r"check rows_per_label found 3: bad has 1 of at least 10 rows in train; bad has 0 of at least 1 rows "
        r"in dev",
    ):
        check_rows(declared(checks={}), rows_of(("text 1", "bad"), *[(text, "good") for text, _ in spread()[2:]]))


def test_too_few_rows_per_label_only_warn() -> None:
    outcome = checked(rows_of(("text 1", "bad"), ("text 2", "good")), {"rows_per_label": "warn"})
    assert len(outcome.rows) == 2
    assert (record(outcome, "rows_per_label").outcome, record(outcome, "rows_per_label").count) == ("warned", 5)


@pytest.mark.parametrize(
    ("one", "two"),
    [("A  b\n", "a B"), ("\ufb01ne", "fine"), ("\uff21", "a"), ("STRASSE", "stra\u00dfe"), ("e\u0301", "\u00e9")],
)
def test_equal_looking_texts_are_the_same(one: str, two: str) -> None:
    assert normalise(one) == normalise(two)


def test_punctuation_counts() -> None:
    assert normalise("fine!") != normalise("fine")


# ---------------------------------------------------------------- reserve


def test_a_reserve_is_cut_out_of_training_alone() -> None:
    keys = [f"text {number}" for number in range(2000)]
    before, after = ([split_of(key, SplitSpec(dev=0.1, test=0.2, reserve=share)) for key in keys] for share in (0, 0.2))
    assert {pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]} == {("train", "reserve")}
    assert Counter(after)["reserve"] == pytest.approx(400, abs=60)


def test_a_larger_reserve_keeps_the_smaller_one() -> None:
    keys = [f"text {number}" for number in range(500)]
    small, large = (
        {key for key in keys if split_of(key, SplitSpec(reserve=share)) == "reserve"} for share in (0.1, 0.2)
    )
    assert small < large


def test_a_reserve_needs_rows_of_each_label() -> None:
    with pytest.raises(DataError, match="bad has 0 of at least 1 rows in reserve"):
        check_rows(
            declared(checks={"min_rows_per_label": 1}, split={"dev": 0.2, "test": 0.2, "reserve": 0.0001}),
            rows_of(*spread()),
        )
