"""Metrics of generated texts against their targets, by rouge-score and sacrebleu.

White space at the ends of texts does not count. Letters: N rows, S resamples.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptpipeline.evaluation.paired import bootstrap_interval
from ptpipeline.records.reports import TEXT_METRICS, TextMetric, TextScores


class TextRows(NamedTuple):
    """The metrics of every row, and the n-gram counts that the metrics of a corpus add up.

    `values`: [N] a metric; a row's `bleu` is smoothed sentence BLEU, its `chrf` is sentence chrF.
    `counts`: of BLEU [N, 10], of chrF [N, 18].
    """

    values: dict[TextMetric, NDArray[np.float64]]
    counts: dict[TextMetric, NDArray[np.float64]]

    @classmethod
    def of(cls, targets: Sequence[str], answers: Sequence[str]) -> "TextRows":
        """Measure each answer against its target."""
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
        """Return the metric of all rows: corpus BLEU / 100 or corpus chrF / 100, else the mean over rows."""
        return _CORPUS[metric](self.counts[metric].sum(0)) if metric in _CORPUS else float(self.values[metric].mean())

    def interval(self, metric: TextMetric) -> tuple[float, float]:
        """Return the two-sided 95% bootstrap interval of `figure` over the rows."""

        def statistic(rows: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:  # [S, N] indexes -> [S]
            if metric in _CORPUS:
                return np.apply_along_axis(_CORPUS[metric], -1, self.counts[metric][rows].sum(-2))
            mean: NDArray[np.float64] = self.values[metric][rows].mean(-1)
            return mean

        return bootstrap_interval((np.arange(len(self.values[metric])),), statistic)


def measure_texts(metric: TextMetric, targets: Sequence[str], answers: Sequence[str]) -> float:
    """Return one metric of these answers."""
    if metric in _CORPUS:
        return TextRows.of(targets, answers).figure(metric)
    return float(
        np.mean(
            [_MEASURES[metric](target.strip(), answer.strip()) for target, answer in zip(targets, answers, strict=True)]
        )
    )


def score_texts(rows: TextRows, answers: Sequence[str]) -> TextScores:
    """Return all metrics of these answers, and the share of the most frequent one."""
    share = Counter(answer.strip() for answer in answers).most_common(1)[0][1] / len(answers)
    return TextScores(**{metric: rows.figure(metric) for metric in TEXT_METRICS}, most_frequent_share=share)


def exact_match(target: str, answer: str) -> float:
    """Return 1 if the two are the same, else 0."""
    return float(target == answer)


def token_f1(target: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall over words, in any order and either case.

    Source: Rajpurkar et al. 2016, section 6.1.
    """
    expected, given = Counter(target.lower().split()), Counter(answer.lower().split())
    if not expected or not given:
        return float(expected == given)
    return 2 * (expected & given).total() / (expected.total() + given.total())


def rouge_l(target: str, answer: str) -> float:
    """Return the F1 of the longest common subsequence of words (Lin 2004)."""
    return float(_rouge().score(target, answer)["rougeL"].fmeasure)


_MEASURES: dict[TextMetric, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
}


class _Words:
    """Words of any script: rouge-score's own tokenizer drops all but a-z and 0-9, so all words of most languages."""

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

    sums = [int(count) for count in counts]
    return float(BLEU.compute_bleu(sums[:4], sums[4:8], sums[8], sums[9], smooth_method="exp").score) / 100


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _corpus_chrf(counts: NDArray[np.float64]) -> float:
    """sacrebleu's chrF2 / 100 of summed counts [18]: for 1 to 6 characters, n-grams of answers, targets and matches."""
    # sacrebleu's public methods take only texts: a bootstrap would count n-grams 2,000 times.
    return float(_chrf()._compute_f_score(counts.tolist())) / 100


_CORPUS: dict[TextMetric, Callable[[NDArray[np.float64]], float]] = {"bleu": _corpus_bleu, "chrf": _corpus_chrf}
