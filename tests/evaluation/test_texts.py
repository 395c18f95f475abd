"""Metrics of generated texts against values by hand, sacrebleu and rouge-score."""

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ptpipeline.evaluation.paired import Hypothesis, mean_difference
from ptpipeline.evaluation.texts import TextRows, _bleu, _chrf, _corpus_bleu, _corpus_chrf, measure_texts, score_texts
from ptpipeline.records.reports import TEXT_METRICS

TARGETS = ["the cat sat on the mat", "a long and winding road to nowhere", "yes", "it was fine"]
ANSWERS = ["the cat sat on a mat", "a winding road to nowhere", " yes\n", "awful"]

sentences = st.lists(
    st.tuples(*[st.lists(st.sampled_from("abcde"), min_size=1, max_size=9).map(" ".join)] * 2), min_size=2, max_size=8
)


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
        ("rouge_l", "A b", "a B", 1),
        ("rouge_l", "snake_case", "snake case", 1),
        ("rouge_l", "영화가 좋다", "영화가 좋다", 1),  # rouge-score's own tokenizer finds no word in it
        ("bleu", "the cat sat on the mat", "the cat sat on the mat", 1),
        ("chrf", "the cat sat", "the cat sat", 1),
        ("chrf", "abc", "xyz", 0),
        (
            "chrf",
            "ab",
            "abcd",
            5 * (1 / 2 + 1 / 3) / 2 / (4 * (1 / 2 + 1 / 3) / 2 + 1),
        ),  # of 1- and 2-grams half and a third right, all found; beta 2
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
def test_corpus_and_sentence_chrf_are_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    targets, answers = [t for t, _ in pairs], [a for _, a in pairs]
    rows = TextRows.of(targets, answers)
    assert rows.figure("chrf") == pytest.approx(sacrebleu.corpus_chrf(answers, [targets]).score / 100)
    assert rows.values["chrf"] == pytest.approx([sacrebleu.sentence_chrf(a, [t]).score / 100 for t, a in pairs])


def test_bleu_and_chrf_give_what_sacrebleus_own_page_shows() -> None:
    """Its example has two references a sentence: the counts are taken over both, what adds them up is ours."""
    references = [
        ["The dog bit the man.", "It was not unexpected.", "The man bit him first."],
        ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."],
    ]
    answers = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    sentences = [_bleu().sentence_score(answer, list(both)) for answer, *both in zip(answers, *references, strict=True)]
    counts = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in sentences])
    assert _corpus_bleu(counts.sum(0)) == pytest.approx(0.4853, abs=5e-5)
    assert _corpus_chrf(np.array(_chrf()._extract_corpus_statistics(answers, references)).sum(0)) == pytest.approx(
        0.5973, abs=5e-5
    )


def test_rouge_l_gives_what_rouge_scores_own_example_does() -> None:
    """The common subsequence is `the quick brown jumps the`: 5 of 8 words, 5 of 9."""
    target, answer = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    assert measure_texts("rouge_l", [target], [answer]) == pytest.approx(2 * (5 / 8) * (5 / 9) / (5 / 8 + 5 / 9))
    assert measure_texts("rouge_l", [target], [answer]) == pytest.approx(
        RougeScorer(["rougeL"], use_stemmer=True).score(target, answer)["rougeL"].fmeasure
    )


@given(sentences)
@settings(max_examples=30)
def test_rouge_l_is_rouge_scores_on_plain_english(pairs: list[tuple[str, str]]) -> None:
    scorer = RougeScorer(["rougeL"])
    expected = np.mean([scorer.score(target, answer)["rougeL"].fmeasure for target, answer in pairs])
    assert measure_texts("rouge_l", *zip(*pairs, strict=True)) == pytest.approx(expected)


def test_scores_hold_every_metric_and_the_commonest_answers_share() -> None:
    found = score_texts(TextRows.of(TARGETS, ANSWERS), ["x", "x", " x", "y"])
    assert found.figures() == {
        metric: pytest.approx(measure_texts(metric, TARGETS, ANSWERS)) for metric in TEXT_METRICS
    }
    assert found.most_frequent_share == 0.75


@pytest.mark.parametrize("metric", TEXT_METRICS)
def test_an_interval_holds_the_figure(metric: str) -> None:
    rows = TextRows.of(TARGETS * 30, ANSWERS * 30)
    low, high = rows.interval(metric)  # type: ignore[arg-type]
    assert low < rows.figure(metric) < high  # type: ignore[arg-type]
    assert high - low < 0.3


def test_a_difference_of_rows_is_paired() -> None:
    noise = np.random.default_rng(0).random(200)
    found = mean_difference(Hypothesis("rouge_l"), noise + 0.1, noise)
    assert (found.difference, found.rows) == (pytest.approx(0.1), 200)
    assert 0.08 < found.lower < 0.1 < found.upper < 0.12
