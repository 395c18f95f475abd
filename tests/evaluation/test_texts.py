"""Metrics of generated texts against values by hand, sacrebleu and rouge-score."""

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ptpipeline.evaluation.paired import mean_difference
from ptpipeline.evaluation.texts import TextRows, measure_texts, text_scores
from ptpipeline.records import TEXT_METRICS

TARGETS = ["the cat sat on the mat", "a long and winding road to nowhere", "yes", "it was fine"]
ANSWERS = ["the cat sat on a mat", "a winding road to nowhere", " yes\n", "awful"]

sentences = st.lists(st.tuples(*[st.lists(st.sampled_from("abcde"), min_size=1, max_size=9).map(" ".join)] * 2), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("metric", "target", "answer", "expected"),
    [
        ("exact_match", "good", " good\n", 1),
        ("exact_match", "good", "Good", 0),
        ("token_f1", "a b c d", "B a x", 4 / 7),  # two of three found, two of four expected
        ("token_f1", "a a b", "a", 1 / 2),
        ("token_f1", "", "", 1),
        ("token_f1", "a", "", 0),
        ("rouge_l", "a b c d", "d a c", 4 / 7),  # longest common subsequence: a c
        ("rouge_l", "영화가 좋다", "영화가 좋다", 1),  # rouge-score's own tokenizer finds no word in it
        ("bleu", "the cat sat on the mat", "the cat sat on the mat", 1),
    ],
)
def test_a_metric_is_what_a_hand_computes(metric: str, target: str, answer: str, expected: float) -> None:
    assert measure_texts(metric, [target], [answer]) == pytest.approx(expected)  # type: ignore[arg-type]


@given(sentences)
@settings(max_examples=30)
def test_corpus_and_sentence_bleu_are_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    targets, answers = [t for t, _ in pairs], [a for _, a in pairs]
    rows = TextRows.of(targets, answers)
    assert rows.figure("bleu") == pytest.approx(sacrebleu.corpus_bleu(answers, [targets]).score / 100)
    assert rows.values["bleu"] == pytest.approx([sacrebleu.sentence_bleu(a, [t]).score / 100 for t, a in pairs])


@given(sentences)
@settings(max_examples=30)
def test_rouge_l_is_rouge_scores_on_plain_english(pairs: list[tuple[str, str]]) -> None:
    scorer = RougeScorer(["rougeL"])
    expected = np.mean([scorer.score(target, answer)["rougeL"].fmeasure for target, answer in pairs])
    assert measure_texts("rouge_l", *zip(*pairs, strict=True)) == pytest.approx(expected)


def test_scores_hold_every_metric_and_the_commonest_answers_share() -> None:
    found = text_scores(TextRows.of(TARGETS, ANSWERS), ["x", "x", " x", "y"])
    assert found.figures() == {metric: pytest.approx(measure_texts(metric, TARGETS, ANSWERS)) for metric in TEXT_METRICS}
    assert found.most_frequent_share == 0.75


@pytest.mark.parametrize("metric", TEXT_METRICS)
def test_an_interval_holds_the_figure(metric: str) -> None:
    rows = TextRows.of(TARGETS * 30, ANSWERS * 30)
    low, high = rows.interval(metric)  # type: ignore[arg-type]
    assert low < rows.figure(metric) < high  # type: ignore[arg-type]
    assert high - low < 0.3


def test_a_difference_of_rows_is_paired() -> None:
    noise = np.random.default_rng(0).random(200)
    found = mean_difference("rouge_l", noise + 0.1, noise, 0.95)  # type: ignore[arg-type]
    assert (found.difference, found.lower, found.upper, found.rows) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1), 200)
