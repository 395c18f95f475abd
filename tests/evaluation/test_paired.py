"""Paired tests and intervals against scipy, statsmodels and published examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestPower

from ptpipeline.evaluation.paired import (
    Hypothesis,
    _permutation_error,
    chance_of_harm,
    difference,
    interval,
    mean_difference,
)
from ptpipeline.evaluation.power import (
    DISCORDANT,
    MAX_MARGIN,
    default_margin,
    expected_discordance,
    rows_needed,
    smallest_gain,
)

rights = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=80)


def columns(rows: list[tuple[bool, bool]]) -> tuple[np.ndarray, np.ndarray]:
    found = np.array(rows, dtype=np.float64)
    return found[:, 0], found[:, 1]


@given(rights)
def test_right_and_wrong_is_judged_by_the_exact_mcnemar_test(rows: list[tuple[bool, bool]]) -> None:
    ours, theirs = columns(rows)
    table = [[int(((ours == a) & (theirs == b)).sum()) for b in (1, 0)] for a in (1, 0)]
    won, lost = table[0][1], table[1][0]
    found = mean_difference(Hypothesis("accuracy"), ours, theirs)
    two_sided = mcnemar(table, exact=True).pvalue
    assert found.test == "exact McNemar"
    if won > lost:  # the one side of a symmetric test is half of both
        assert found.p_value == pytest.approx(two_sided / 2)
    assert found.p_value == pytest.approx(stats.binom.sf(won - 1, won + lost, 0.5))


def test_agrestis_approval_ratings_are_found() -> None:
    """Agresti, Categorical Data Analysis, table 10.1: of 1,600 asked twice 150 changed to disapproval and 86 to
    approval; z**2 = 17.36.
    """
    before = np.repeat([1.0, 1.0, 0.0, 0.0], [794, 150, 86, 570])
    after = np.repeat([1.0, 0.0, 1.0, 0.0], [794, 150, 86, 570])
    found = mean_difference(Hypothesis("accuracy"), before, after)
    assert found.difference == pytest.approx(0.04)
    assert found.p_value == pytest.approx(stats.norm.sf(np.sqrt(17.36)), rel=0.25)
    assert (found.lower, found.upper) == pytest.approx(
        (0.04 - 1.645 * 0.0095, 0.04 + 1.645 * 0.0095), abs=3e-4
    )  # its standard error is .0095


def test_students_sleep_data_give_the_published_p() -> None:
    """Student 1908, hours of sleep gained by ten patients: t = 4.06 of nine degrees, one-sided p .0014; two rows are
    added here.
    """
    first = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
    second = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
    assert stats.ttest_rel(second, first, alternative="greater").pvalue == pytest.approx(0.001416, abs=1e-6)
    found = mean_difference(Hypothesis("rouge_l"), second, first)
    assert found.difference == pytest.approx(1.58)
    assert found.p_value == pytest.approx(
        stats.ttest_1samp([*(second - first), 1, -1], 0, alternative="greater").pvalue
    )


@given(rights, st.floats(0.001, 0.2))
def test_a_margin_makes_it_easier_and_harm_is_the_other_side(rows: list[tuple[bool, bool]], margin: float) -> None:
    ours, theirs = columns(rows)
    near, far = (
        mean_difference(Hypothesis("accuracy", margin=m), ours, theirs).p_value or 0.0 for m in (margin, margin + 0.1)
    )
    assert far < near
    assert chance_of_harm(ours, theirs) == mean_difference(Hypothesis("accuracy"), theirs, ours).p_value


@pytest.mark.parametrize("rows", [5, 40])
def test_rows_that_all_agree_prove_no_equality_where_they_are_few(rows: int) -> None:
    alike = np.ones(rows)
    assert (mean_difference(Hypothesis("accuracy", margin=0.02), alike, alike).p_value or 0.0) > 0.25
    labels = ["a", "b"] * rows
    assert (difference(Hypothesis("macro_f1", margin=0.02), labels, labels, labels, ["a", "b"]).p_value or 0.0) > 0.01


def test_the_test_keeps_its_level_near_the_margin() -> None:
    """Challengers that are worse by exactly the margin pass for no worse as often as they may."""
    dice = np.random.default_rng(0)
    passed = 0
    for _ in range(2000):
        kinds = dice.choice([-1.0, 0.0, 1.0], size=500, p=[0.06, 0.90, 0.04])
        passed += (mean_difference(Hypothesis("accuracy", margin=0.02), kinds, np.zeros(500)).p_value or 0.0) <= 0.05
    assert passed / 2000 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_the_bootstraps_error_is_that_of_many_samples() -> None:
    """Macro F1 of two prompts: the bound that one sample gives lies where a thousand fresh samples say."""
    dice, labels = np.random.default_rng(1), ["a", "b", "c"]

    def sample() -> tuple[list[str], list[str], list[str]]:
        truth = dice.choice(labels, size=300, p=[0.5, 0.3, 0.2])
        ours, theirs = (
            np.where(dice.random(300) < right, truth, dice.choice(labels, size=300)) for right in (0.7, 0.65)
        )
        return truth.tolist(), ours.tolist(), theirs.tolist()

    from sklearn.metrics import f1_score

    spread = np.std(
        [
            f1_score(t, a, average="macro") - f1_score(t, b, average="macro")
            for t, a, b in (sample() for _ in range(300))
        ]
    )
    found = difference(Hypothesis("macro_f1"), *sample(), labels)
    assert (found.difference - found.lower) / stats.norm.ppf(0.95) == pytest.approx(spread, rel=0.2)
    assert found.test == "paired bootstrap"


def test_a_rare_label_promotes_no_noise_at_a_late_look() -> None:
    """Two equal prompts that answer three rows of a rare label by coin: resampling alone knows too little of them."""
    labels, truth = ["a", "b", "c"], np.array(["a"] * 250 + ["b"] * 247 + ["c"] * 3)
    dice, promoted = np.random.default_rng(2), 0
    for _ in range(40):
        ours, theirs = (
            np.where((dice.random(500) < 0.95) & (truth != "c") | (truth == "c") & (dice.random(500) < 0.5), truth, "a")
            for _ in range(2)
        )
        promoted += (
            difference(Hypothesis("macro_f1"), truth.tolist(), ours.tolist(), theirs.tolist(), labels).p_value or 0.0
        ) <= 3.4e-5
    assert promoted == 0


@given(st.floats(0.01, 0.2), st.floats(1e-6, 0.3), st.floats(0.02, 0.5))
@settings(max_examples=30, deadline=None)
def test_rows_needed_have_the_power_and_a_tenth_fewer_have_not(effect: float, alpha: float, discordant: float) -> None:
    rows = rows_needed(effect, alpha, discordant)
    spread = effect / np.sqrt(max(discordant, effect) - effect**2)
    powers = [TTestPower().power(spread, n, alpha, alternative="larger") for n in (rows, max(rows * 0.9 - 2, 2))]
    assert powers[0] >= 0.8 - 1e-6
    assert rows < 30 or powers[1] < 0.8


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mcc"])
def test_a_wider_margin_is_easier_by_every_metric_of_labels(metric: str) -> None:
    """The bounds of the difference stay: only what they are held against moves."""
    dice, labels = np.random.default_rng(3), ["a", "b"]
    truth = dice.choice(labels, size=200)
    ours, theirs = (np.where(dice.random(200) < right, truth, "a").tolist() for right in (0.7, 0.75))
    none, narrow, wide = (
        difference(Hypothesis(metric, margin=margin), truth.tolist(), ours, theirs, labels) for margin in (0, 0.05, 0.1)
    )
    assert (wide.p_value or 0.0) < (narrow.p_value or 0.0) < (none.p_value or 0.0)
    assert none.difference == narrow.difference == wide.difference
    assert (none.lower, none.upper) == (narrow.lower, narrow.upper) == (wide.lower, wide.upper)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_difference_of_just_the_margin_is_even(metric: str) -> None:
    """No worse than by the margin, and exactly that much worse: the chance is a half."""
    labels, truth = ["a", "b"], ["a", "b"] * 50
    ours, theirs = ["b", "a", *truth[2:]], truth
    found = difference(Hypothesis(metric, margin=0.02), truth, ours, theirs, labels)
    assert found.difference == pytest.approx(-0.02)
    assert found.p_value == pytest.approx(0.5, abs=0.01)


def test_a_margin_is_never_judged_by_the_exact_test() -> None:
    rows = np.array([1.0, 0.0] * 20)
    assert mean_difference(Hypothesis("accuracy", margin=0.02), rows, rows[::-1]).test == "paired t"
    assert mean_difference(Hypothesis("bleu"), rows / 2, rows[::-1]).test == "paired t"


def test_harm_of_texts_is_shown_by_rows_that_are_worse() -> None:
    worse, better = np.linspace(0.0, 0.5, 40), np.linspace(0.4, 0.9, 40)
    assert chance_of_harm(worse, better) < 0.001
    assert chance_of_harm(better, worse) > 0.999


def test_harm_of_texts_is_in_how_much_is_lost_and_not_in_how_many_rows_lose() -> None:
    champion = np.full(40, 0.5)
    assert chance_of_harm(champion + np.repeat([-0.3, 0.01], [15, 25]), champion) < 0.02


def test_the_answers_to_a_row_change_places_on_both_sides() -> None:
    """Each of n rows that differ is won or lost by coin: the error of a share of N rows is root n / N."""
    truth, ours = np.zeros(100, dtype=np.int64), np.repeat([0, 1], [70, 30])
    theirs = np.concatenate([np.repeat([0, 1], [52, 18]), np.repeat([0, 1], [18, 12])])  # 36 rows differ

    def gain(truth: np.ndarray, one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean(one == truth, axis=-1) - np.mean(other == truth, axis=-1)

    assert _permutation_error((truth, ours, theirs), gain) == pytest.approx(0.06, rel=0.06)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mcc"])
def test_the_bounds_are_those_of_the_confidence_and_the_p_is_not(metric: str) -> None:
    truth, ours = ["a", "b"] * 40, ["a", "b"] * 30 + ["b", "a"] * 10
    theirs = ["b", "a"] * 15 + ["a", "b"] * 25
    usual, sure = (
        difference(Hypothesis(metric, confidence, margin=0.02), truth, ours, theirs, ["a", "b"])
        for confidence in (0.95, 0.99)
    )
    assert (usual.confidence, sure.confidence, usual.margin) == (0.95, 0.99, 0.02)
    assert sure.lower < usual.lower < usual.difference < usual.upper < sure.upper
    assert usual.p_value == sure.p_value


@pytest.mark.parametrize("rows", [0, 1])
def test_an_interval_needs_two_rows(rows: int) -> None:
    labels = ["a"] * rows
    with pytest.raises(ValueError, match=f"at least two test rows, found {rows}"):
        interval("accuracy", labels, labels, ["a"])
    with pytest.raises(ValueError, match=f"at least two test rows, found {rows}"):
        mean_difference(Hypothesis("accuracy"), [1.0] * rows, [1.0] * rows)


def test_the_rows_that_differ_are_counted_both_ways() -> None:
    truth, ours, theirs = ["a"] * 10, ["a"] * 6 + ["b"] * 4, ["a"] * 3 + ["b"] * 3 + ["a"] + ["b"] * 3
    for metric in ("accuracy", "macro_f1"):
        found = difference(Hypothesis(metric), truth, ours, theirs, ["a", "b"])
        assert (found.rows, found.discordant) == (10, pytest.approx(0.4))


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mcc"])
def test_two_wrong_answers_do_not_differ_whatever_they_are(metric: str) -> None:
    truth, ours, theirs = ["a"] * 8 + ["b"] * 2, ["a"] * 7 + ["b"] * 3, ["a"] * 7 + ["c"] + ["b"] * 2
    assert difference(Hypothesis(metric), truth, ours, theirs, ["a", "b", "c"]).discordant == 0


def test_the_default_margin_is_of_the_budget() -> None:
    """A smaller budget needs a larger difference; both are what so many rows show at that level."""
    strict, usual = (default_margin(1000, budget) for budget in (0.01, 0.05))
    assert MAX_MARGIN > strict > usual
    assert rows_needed(strict, 0.01, DISCORDANT) == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize(("measured", "expected"), [(None, DISCORDANT), (0.0, 0.01), (0.01, 0.01), (0.3, 0.3)])
def test_two_prompts_differ_as_measured_but_never_on_no_row(measured: float | None, expected: float) -> None:
    assert expected_discordance(measured) == expected


def test_the_smallest_gain_is_what_the_rows_show() -> None:
    gain = smallest_gain(500, 0.05, 0.2)
    assert gain is not None
    assert rows_needed(gain, 0.05, 0.2) == pytest.approx(500, abs=1)


def test_few_rows_show_a_large_gain_alone() -> None:
    gain = smallest_gain(20, 0.05, 0.5)
    assert gain is not None
    assert gain > 0.3
    assert rows_needed(gain, 0.05, 0.5) == pytest.approx(20, abs=1)


def test_one_row_shows_nothing() -> None:
    assert smallest_gain(1, 0.05, 0.1) is None
    assert smallest_gain(2, 1e-9, 0.1) is None


def test_the_default_margin_shrinks_with_the_rows() -> None:
    assert [default_margin(rows, 0.05) for rows in (2, 50, 1000, 10_000)] == [MAX_MARGIN, MAX_MARGIN, 0.0248, 0.0079]
