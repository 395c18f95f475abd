"""Leakage: how much of the test rows stands, or nearly stands, in training."""

import pytest

from ptpipeline.data.rows import Row
from ptpipeline.data.validation import check_rows
from ptpipeline.errors import DataError
from ptpipeline.evaluation.leakage import measure_leakage
from tests.shipped import shipped


def rows_of(*texts: str) -> list[Row]:
    return [Row(f"{number:016x}", {"text": text}, "bad") for number, text in enumerate(texts)]


TRAIN = rows_of("The plot is thin and the acting is worse", "a fine film", "nothing to see here")


def test_exact_and_near_rows_are_counted() -> None:
    test = rows_of(
        "a  FINE film", "The plot is thin, and the acting is worse!!", "something else entirely", "utterly new"
    )
    assert measure_leakage(test, TRAIN) == {"leakage.exact": 0.25, "leakage.near": 0.5, "leakage.rows": 2}


def test_fresh_rows_leak_nothing() -> None:
    assert measure_leakage(rows_of("something else entirely"), TRAIN) == {
        "leakage.exact": 0,
        "leakage.near": 0,
        "leakage.rows": 0,
    }


def test_tweets_leak_where_near_duplicates_go_their_own_way() -> None:
    task, source = shipped("tweet-sentiment")
    checks = task.data.checks.model_copy(update={"near_duplicate": "off"})
    task = task.model_copy(update={"data": task.data.model_copy(update={"checks": checks})})
    rows = [(row.split, Row("0", row.fields, row.label)) for row in check_rows(task, source).rows]
    test, train = ([row for at, row in rows if at == split] for split in ("test", "train"))
    assert measure_leakage(test, train) == {"leakage.exact": 0, "leakage.near": 34 / 1040, "leakage.rows": 34}


def test_leaked_rows_are_found_in_real_tweets() -> None:
    rows = [(row.split, Row("0", row.fields, row.label)) for row in check_rows(*shipped("tweet-sentiment")).rows]
    test, train = ([row for at, row in rows if at == split] for split in ("test", "train"))
    assert measure_leakage(test, train)["leakage.near"] == 0
    found = measure_leakage(test, [*train, *test[:50]])
    assert found["leakage.exact"] == 50 / len(test)
    assert found["leakage.near"] > found["leakage.exact"]


def pairs(*texts: tuple[str, str]) -> list[Row]:
    return [Row(f"{n:016x}", {"premise": premise, "claim": claim}, "yes") for n, (premise, claim) in enumerate(texts)]


def test_a_field_that_is_named_leaks_by_itself() -> None:
    train = pairs(("two dogs run over the green grass", "animals move fast"), ("a man sleeps on the bench", "he rests"))
    test = pairs(
        ("Two dogs run over the green grass!", "nobody is outside today, it seems, and the street is empty"),
        ("a woman reads her paper at home", "animals move fast"),
    )
    assert measure_leakage(test, train) == {"leakage.exact": 0, "leakage.near": 0, "leakage.rows": 0}
    found = measure_leakage(test, train, ["premise"])
    assert found == {"leakage.exact": 0, "leakage.near": 0.5, "leakage.rows": 1, "leakage.field.premise": 0.5}
    both = measure_leakage(test, train, ["premise", "claim"])
    assert (both["leakage.near"], both["leakage.field.claim"]) == (1, 0.5)


def test_a_field_that_training_rows_did_not_have_leaks_nothing() -> None:
    assert measure_leakage(pairs(("a", "b")), TRAIN, ["claim"])["leakage.near"] == 0


def test_without_training_rows_nothing_leaks() -> None:
    nothing = {"leakage.exact": 0, "leakage.near": 0, "leakage.rows": 0}
    assert measure_leakage(TRAIN, []) == nothing


def test_no_test_rows_are_refused() -> None:
    with pytest.raises(DataError, match="there are none"):
        measure_leakage([], TRAIN)
