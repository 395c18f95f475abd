"""The attack on training rows: what a memorised prompt gives away, and what it cannot."""

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ptpipeline.data.rows import Row
from ptpipeline.data.tokens import FreeText, LabelTokens, TaskText
from ptpipeline.evaluation.probes import likelihood
from ptpipeline.evaluation.probes.likelihood import bare_likelihoods, prompted_likelihoods
from ptpipeline.evaluation.probes.membership import _balance, _finite, attack, interval, measure_membership
from ptpipeline.models.inputs import Input
from ptpipeline.prompts.placement import build_text_encoder
from ptpipeline.records.prompts import Generation
from ptpipeline.serving.engine import Question
from ptpipeline.task.template import parse_template
from tests.evaluation.probed import LABELS, blind, embeddings, memorised, numbered, opinions, rows, tiny, writing

OTHER = {"negative": "positive", "positive": "negative"}


def wrong(given: list[Row]) -> list[Row]:
    return [row._replace(label=OTHER[row.label]) for row in given]


def test_a_prompt_that_memorised_its_rows_gives_them_away() -> None:
    given = numbered(88, seed=13)
    engine, made = memorised(given[:8])
    found = measure_membership(engine, made, given[:8], given[8:])
    assert found["privacy.auc"] > 0.8
    assert found["privacy.low"] > 0.5
    assert abs(found["privacy.auc_zero_shot"] - 0.5) < 0.15


def test_without_known_training_rows_nothing_is_measured() -> None:
    engine, made = opinions(tiny())
    assert measure_membership(engine, made, [], rows(30, 2)) == {}


@pytest.mark.parametrize("kind", [opinions, writing])
def test_rows_that_all_have_the_likelier_answer_are_all_found(kind: object) -> None:
    engine, made = kind(tiny())  # type: ignore[operator]
    found = measure_membership(engine, made, rows(30, 1), wrong(rows(30, 2)))
    assert found["privacy.auc"] > 0.99
    assert measure_membership(engine, made, wrong(rows(30, 1)), rows(30, 2))["privacy.auc"] < 0.01


def test_the_area_is_scikit_learns_over_likelihoods_of_single_requests() -> None:
    engine, made = opinions(tiny())
    right = {name: [row for row in rows(60) if row.label == name] for name in LABELS}
    train = [row for name in LABELS for row in right[name][:10]]
    test = [row for name in LABELS for row in [*right[name][10:15], *wrong(right[OTHER[name]][15:20])]]
    scores = [
        float(engine.score_labels([Question(made.digest, row.fields)])[0][list(LABELS).index(row.label)])
        for row in [*train, *test]
    ]
    found = measure_membership(engine, made, train, test)
    assert found["privacy.auc"] == pytest.approx(roc_auc_score([1] * 20 + [0] * 20, scores), abs=0.01)
    bare = roc_auc_score([1] * 20 + [0] * 20, bare_likelihoods(engine, made, [*train, *test]))
    assert found["privacy.auc_zero_shot"] == pytest.approx(bare, abs=0.01)
    assert bare != pytest.approx(0.5, abs=0.02)
    assert 0.5 < found["privacy.low"] < found["privacy.auc"] < found["privacy.high"] < 1


def test_every_label_has_as_many_rows_on_both_sides() -> None:
    engine, made = opinions(tiny())
    right = {name: [row for row in rows(80) if row.label == name] for name in LABELS}
    train, test = (
        [*right["negative"][:6], *right["positive"][:20]],
        [*right["negative"][6:26], *right["positive"][20:25]],
    )
    assert measure_membership(engine, made, train, test)["privacy.rows"] == 6 + 5


def test_two_hundred_and_fifty_rows_at_most_and_the_same_in_any_order() -> None:
    many = [Row(str(number), {"text": "text"}, ("a", "b", "c")[number % 3]) for number in range(3000)]
    inside, outside = _balance(many[:1500], many[1500:], lambda row: row.label)
    assert Counter(row.label for row in inside) == Counter(row.label for row in outside) == dict.fromkeys("abc", 83)
    assert inside == _balance(many[:1500][::-1], many[1500:], lambda row: row.label)[0]
    assert len(_balance(many[:1500], many[1500:], lambda row: "")[0]) == 250


def test_more_labels_than_rows_that_are_compared_have_one_row_each() -> None:
    many = [Row(str(number), {"text": "text"}, str(number % 251)) for number in range(1004)]
    inside, outside = _balance(many[:502], many[502:], lambda row: row.label)
    assert Counter(row.label for row in inside) == Counter(row.label for row in outside)
    assert set(Counter(row.label for row in inside).values()) == {1}
    assert len(inside) == 251


def test_a_label_that_one_side_lacks_takes_no_rows_from_the_others() -> None:
    many = [Row(str(number), {"text": "text"}, ("a", "b")[number % 2]) for number in range(1200)]
    inside, outside = _balance(many[:600], [row for row in many[600:] if row.label == "a"], lambda row: row.label)
    assert Counter(row.label for row in inside) == Counter(row.label for row in outside) == {"a": 250}


def test_neither_what_is_no_number_nor_what_is_infinite_is_compared() -> None:
    assert _finite([-1.5, float("nan"), float("-inf"), float("inf"), -2]).tolist() == [-1.5, -2]


def test_the_interval_is_as_wide_as_hanley_and_mcneil_state() -> None:
    dice = np.random.default_rng(0)
    inside, outside = dice.normal(0.5, size=300), dice.normal(0, size=300)
    area, (low, high) = attack(inside, outside), interval(inside, outside)
    one, two = area / (2 - area), 2 * area**2 / (1 + area)  # Hanley & McNeil 1982, equation 2
    error = ((area * (1 - area) + 299 * (one - area**2) + 299 * (two - area**2)) / 300**2) ** 0.5
    assert (low, high) == (pytest.approx(area - 1.96 * error, abs=0.01), pytest.approx(area + 1.96 * error, abs=0.01))


def test_rows_without_a_finite_likelihood_are_left_out() -> None:
    base = blind(tiny(), " film")
    engine, made = opinions(base)
    token = base.encode(" film", False)[0]
    without = [row for row in rows(60) if token not in base.encode(row.text, False)]
    broken = [row for row in rows(60) if row not in without]
    assert measure_membership(engine, made, without[:12], wrong(without[12:24]))["privacy.auc"] > 0.99
    assert measure_membership(engine, made, without, broken) == {"privacy.rows": 0}


def test_too_few_rows_give_their_count_alone() -> None:
    engine, made = opinions(tiny())
    assert measure_membership(engine, made, rows(30), []) == {"privacy.rows": 0}
    one, other = ([rows(1, seed)[0]._replace(label="positive")] for seed in (1, 2))
    assert measure_membership(engine, made, one, other) == {"privacy.rows": 1}


def test_free_texts_are_compared_though_no_two_are_equal() -> None:
    engine, made = opinions(tiny(), labels={}, generate=Generation(max_new_tokens=8))
    train, test = (
        [row._replace(label=f"{row.label} {row.text.split()[-1]}") for row in rows(9, seed)] for seed in (1, 2)
    )
    test = [row._replace(label=f"good {row.label}") for row in test]
    assert measure_membership(engine, made, train, test)["privacy.rows"] == 9


def test_a_target_that_is_never_generated_in_full_is_left_out() -> None:
    engine, made = writing(tiny())
    long = [row._replace(label="positive and very good") for row in rows(10, 1)]
    assert measure_membership(engine, made, rows(10, 2), [*long, *rows(4, 3)])["privacy.rows"] == 4


def test_a_targets_likelihood_is_the_mean_over_its_tokens() -> None:
    base = tiny()
    engine, made = opinions(base, labels={}, generate=Generation(max_new_tokens=4))
    given = [row._replace(label=f"{row.label} good film") for row in rows(6)]
    for row, ours, alone in zip(
        given, prompted_likelihoods(engine, made, given), bare_likelihoods(engine, made, given), strict=True
    ):
        target = base.encode(f" {row.label}", False)
        inputs = [Input(base.encode(f"{row.text}\nSentiment:", True), target[:-1], 0)]
        for found, states in (
            (ours, base.concatenate([embeddings(base)], inputs)),
            (alone, base.compute_states(None, inputs)),
        ):
            tokens = base.compute_logits(states).log_softmax(-1)[range(len(target)), target]
            assert found == pytest.approx(float(tokens.mean()), rel=1e-4)


def test_a_target_is_likely_behind_its_text_as_it_was_cut() -> None:
    changed = {"labels": {}, "generate": Generation(max_new_tokens=8), "template": "{text}", "too_long": "truncate_end"}
    row, joined = Row("1", {"text": "good  film  good  film  good  film"}, "good"), set()
    for limit in range(2, 8):
        engine, made = opinions(tiny(), max_input_tokens=limit, **changed)
        encode = build_text_encoder(engine.base, made.manifest.placement)
        trained = TaskText(
            "t", parse_template("{text}"), LabelTokens((), ()), limit, encode, FreeText(8, 0), "truncate_end"
        )
        assert likelihood._target(engine, made, row) == trained.rows([row])[0].target[:-1]
        joined.add(trained.rows([row])[0].target)
    assert len(joined) == 2
