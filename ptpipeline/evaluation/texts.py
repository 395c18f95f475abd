"""Metrics of generated texts against their targets, by rouge-score and sacrebleu; texts are compared without white
space at their ends.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptpipeline.evaluation.paired import resampled
from ptpipeline.records import TEXT_METRICS, TextMetric, TextScores


class TextRows(NamedTuple):
    """The metrics of every row [N] (its `bleu` is smoothed sentence BLEU, its `chrf` sentence chrF), and by the metrics
    of a corpus the counts that these add up: of BLEU [N, 10], of chrF [N, 18].
    """

    values: dict[TextMetric, NDArray[np.float64]]
    counts: dict[TextMetric, NDArray[np.float64]]

    @classmethod
    def of(cls, targets: Sequence[str], answers: Sequence[str]) -> "TextRows":
        """Each answer against its target."""
        pairs = [(target.strip(), answer.strip()) for target, answer in zip(targets, answers, strict=True)]
        sentences = [_bleu().sentence_score(answer, [target]) for target, answer in pairs]
        values = {metric: np.array([measure(*pair) for pair in pairs]) for metric, measure in _MEASURES.items()}
        values["bleu"] = np.array([sentence.score / 100 for sentence in sentences])
        grams = np.array(
            _chrf()._extract_corpus_statistics([answer for _, answer in pairs], [[target for target, _ in pairs]]),
            dtype=np.float64,
        )
        values["chrf"] = np.array([_corpus_chrf(row) for row in grams])
        return cls(
            values,
            {
                "bleu": np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in sentences], dtype=np.float64),
                "chrf": grams,
            },
        )

    def figure(self, metric: TextMetric) -> float:
        """The metric of all rows: corpus BLEU / 100 or corpus chrF / 100, else the mean."""
        return _CORPUS[metric](self.counts[metric].sum(0)) if metric in _CORPUS else float(self.values[metric].mean())

    def interval(self, metric: TextMetric, confidence: float = 0.95) -> tuple[float, float]:
        """Two-sided bootstrap interval of `figure` over the rows."""

        def statistic(rows: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
            if metric in _CORPUS:
                return np.apply_along_axis(_CORPUS[metric], -1, self.counts[metric][rows].sum(-2))
            mean: NDArray[np.float64] = self.values[metric][rows].mean(-1)
            return mean

        return resampled((np.arange(len(self.values[metric])),), statistic, confidence)


def measure_texts(metric: TextMetric, targets: Sequence[str], answers: Sequence[str]) -> float:
    """One metric of these answers."""
    if metric in _CORPUS:
        return TextRows.of(targets, answers).figure(metric)
    return float(
        np.mean(
            [_MEASURES[metric](target.strip(), answer.strip()) for target, answer in zip(targets, answers, strict=True)]
        )
    )


def text_scores(rows: TextRows, answers: Sequence[str]) -> TextScores:
    """All metrics of these answers."""
    share = Counter(answer.strip() for answer in answers).most_common(1)[0][1] / len(answers)
    return TextScores(**{metric: rows.figure(metric) for metric in TEXT_METRICS}, most_frequent_share=share)


def exact_match(target: str, answer: str) -> float:
    """1 where the two are the same."""
    return float(target == answer)


def token_f1(target: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the words, in any order and either case (Rajpurkar et al. 2016,
    section 6.1).
    """
    expected, found = Counter(target.lower().split()), Counter(answer.lower().split())
    if not expected or not found:
        return float(expected == found)
    return 2 * (expected & found).total() / (expected.total() + found.total())


def rouge_l(target: str, answer: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004)."""
    return float(_rouge().score(target, answer)["rougeL"].fmeasure)


_MEASURES: dict[TextMetric, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
}


class _Words:
    """Words of any script: rouge-score's own tokenizer drops all but a-z and 0-9, and so every word of most
    languages.
    """

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # takes seconds to import

    return RougeScorer(["rougeL"], tokenizer=_Words())


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)  # as sacrebleu scores sentences; corpus BLEU is computed from the counts


def _corpus_bleu(counts: NDArray[np.float64]) -> float:
    """sacrebleu's corpus BLEU / 100 of summed counts [10]: matches and totals of 1- to 4-grams, both lengths."""
    from sacrebleu.metrics.bleu import BLEU

    whole = [int(count) for count in counts]
    return float(BLEU.compute_bleu(whole[:4], whole[4:8], whole[8], whole[9], smooth_method="exp").score) / 100


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _corpus_chrf(counts: NDArray[np.float64]) -> float:
    """sacrebleu's chrF2 / 100 of summed counts [18]: n-grams of answers, of targets and matches, for 1 to 6
    characters.
    """
    return (
        float(_chrf()._compute_f_score(counts.tolist())) / 100
    )  # its public methods take texts alone: a bootstrap would count n-grams 2,000 times


_CORPUS: dict[TextMetric, Callable[[NDArray[np.float64]], float]] = {"bleu": _corpus_bleu, "chrf": _corpus_chrf}
