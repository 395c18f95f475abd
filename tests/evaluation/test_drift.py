"""Drift between two sets of rows: small between halves of one source, large between two sources."""

from random import Random

import pytest
from scipy.stats import chi2_contingency, ks_2samp

from ptpipeline.data.rows import Row
from ptpipeline.errors import DataError
from ptpipeline.evaluation.drift import measure_drift
from tests.shipped import texts


def halves(name: str) -> tuple[list[Row], list[Row]]:
    rows = Random(3).sample(texts(name), 2000)
    return rows[:1000], rows[1000:]


def rows_of(*pairs: tuple[str, str]) -> list[Row]:
    return [Row(f"{number:016x}", {"text": text}, label) for number, (text, label) in enumerate(pairs)]


def test_halves_of_the_tweets_have_not_drifted() -> None:
    found = measure_drift(*halves("tweet-sentiment"))
    assert abs(found["drift.vocabulary"]) < 0.02
    assert max(found["drift.labels"], found["drift.length"]) < 0.06
    assert min(found["drift.labels_p"], found["drift.length_p"]) > 0.01


def test_movie_reviews_have_drifted_from_tweets() -> None:
    found = measure_drift(halves("tweet-sentiment")[0], halves("movie-sentiment")[0])
    assert found["drift.vocabulary"] > 0.06
    assert found["drift.length"] > 0.2
    assert found["drift.labels"] > 0.1
    assert max(found["drift.labels_p"], found["drift.length_p"]) < 1e-6


def test_equal_rows_have_not_drifted_at_all() -> None:
    rows = halves("tweet-sentiment")[0]
    found = measure_drift(rows, rows[::-1])
    assert (found["drift.labels"], found["drift.length"]) == (0, 0)
    assert found["drift.labels_p"] == found["drift.length_p"] == 1


def test_label_shares_are_compared_by_total_variation() -> None:
    before = rows_of(*[("a b", "bad")] * 30, *[("a b", "good")] * 10)
    now = rows_of(*[("a b", "bad")] * 5, *[("a b", "other")] * 15)
    found = measure_drift(before, now)
    assert found["drift.labels"] == pytest.approx(0.75)
    assert found["drift.labels_p"] == pytest.approx(chi2_contingency([[30, 10, 0], [5, 0, 15]])[1])


def test_one_label_everywhere_is_no_drift() -> None:
    assert (
        measure_drift(rows_of(("a", "bad"), ("b", "bad")), rows_of(("c", "bad"), ("d", "bad")))["drift.labels_p"] == 1
    )


def test_new_words_are_the_vocabulary_s_drift() -> None:
    before = rows_of(*[("red green blue", "bad")] * 20)
    assert measure_drift(before, rows_of(*[("red green violet", "bad")] * 20))["drift.vocabulary"] == pytest.approx(
        1 / 3
    )
    assert measure_drift(before, rows_of(*[("BLUE  Red", "bad")] * 20))["drift.vocabulary"] == 0


def test_each_half_of_the_earlier_rows_is_the_vocabulary_once() -> None:
    before, now = rows_of(("red", "bad"), ("green", "bad")), [("red", "bad")] * 2
    # `red` knows all of the new words and none of the other half, `green` none of either: 0 - 1 and 1 - 1
    assert measure_drift(before, rows_of(*now))["drift.vocabulary"] == -0.5
    assert measure_drift(before, rows_of(*[("green", "bad")] * 2))["drift.vocabulary"] == -0.5


def test_few_rows_alone_are_no_drift() -> None:
    rows = texts("tweet-sentiment")
    samples = [Random(seed).sample(rows, 160) for seed in range(40)]
    found = [measure_drift(sample[:40], sample[40:])["drift.vocabulary"] for sample in samples]
    assert sum(found) / len(found) == pytest.approx(0, abs=0.015)


def test_free_texts_have_no_label_shares() -> None:
    rows = rows_of(("a", "one"), ("b", "two"))
    assert sorted(measure_drift(rows, rows, labelled=False)) == ["drift.length", "drift.length_p", "drift.vocabulary"]


def test_order_changes_no_figure() -> None:
    before, now = halves("tweet-sentiment")
    assert measure_drift(Random(1).sample(before, len(before)), now[::-1]) == pytest.approx(
        measure_drift(before, now), abs=1e-12
    )


def test_free_texts_have_no_shares_of_labels() -> None:
    rows = rows_of(("a b", "one text"), ("c", "another"))
    assert set(measure_drift(rows, rows, labelled=False)) == {
        "drift.length",
        "drift.length_p",
        "drift.vocabulary",
    }


def test_lengths_are_compared_in_words_by_the_asymptotic_test() -> None:
    before, now = rows_of(*[("a b c", "bad")] * 5), rows_of(*[("abcdefgh i", "bad")] * 3, *[("a b c", "bad")] * 3)
    found = measure_drift(before, now)
    expected = ks_2samp([3] * 5, [2] * 3 + [3] * 3, method="asymp")
    assert (found["drift.length"], found["drift.length_p"]) == (0.5, pytest.approx(expected.pvalue))
    assert measure_drift(before, rows_of(*[("longer words here", "bad")] * 5))["drift.length"] == 0


def test_rows_without_words_have_no_new_ones() -> None:
    empty = rows_of(("", "bad"), ("", "bad"))
    assert measure_drift(empty, empty)["drift.vocabulary"] == 0


def test_a_single_row_is_refused() -> None:
    one, two = rows_of(("a", "bad")), rows_of(("a", "bad"), ("b", "bad"))
    for before, now in ((one, two), (two, one)):
        with pytest.raises(DataError, match="each side needs at least two rows"):
            measure_drift(before, now)
