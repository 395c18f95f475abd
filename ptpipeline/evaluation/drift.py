"""How far rows moved away from those before them: in labels, length and vocabulary."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from ptpipeline.data.near import normalised
from ptpipeline.data.rows import Row
from ptpipeline.errors import DataError


def drift(before: Sequence[Row], now: Sequence[Row], labelled: bool = True) -> dict[str, float]:
    """Distances in 0..1 between the rows of two snapshots, with the p-values of scipy's tests; 0 where nothing moved.

    `drift.labels` is the total variation distance of the label shares, with the p of a chi-squared test; it is left out
    where labels are free texts (`labelled` False). `drift.length` is the Kolmogorov-Smirnov statistic of the numbers of
    words, with its asymptotic p. `drift.vocabulary`: see `_vocabulary`; it may be below 0 by chance. DataError for
    fewer than two rows.
    """
    if min(len(before), len(now)) < 2:
        raise DataError(
            f"drift from {len(before)} rows to {len(now)}: at least two rows on either side are needed; give "
            "whole splits"
        )
    return (
        (_labels(before, now) if labelled else {})
        | _length(before, now)
        | {"drift.vocabulary": _vocabulary(before, now)}
    )


def _labels(before: Sequence[Row], now: Sequence[Row]) -> dict[str, float]:
    from scipy.stats import chi2_contingency

    counts = [Counter(row.label for row in rows) for rows in (before, now)]
    labels = sorted(counts[0] | counts[1])
    table = [[count[label] for label in labels] for count in counts]
    distance = sum(abs(old / len(before) - new / len(now)) for old, new in zip(*table, strict=True)) / 2
    return {"drift.labels": distance, "drift.labels_p": float(chi2_contingency(table).pvalue)}


def _length(before: Sequence[Row], now: Sequence[Row]) -> dict[str, float]:
    from scipy.stats import ks_2samp

    found = ks_2samp(*([len(row.text.split()) for row in rows] for rows in (before, now)), method="asymp")
    return {"drift.length": float(found.statistic), "drift.length_p": float(found.pvalue)}


def _vocabulary(before: Sequence[Row], now: Sequence[Row]) -> float:
    """Share of word occurrences in `now` that a half of `before` never saw, minus that share in its other half.

    Both shares are of the same vocabulary, so without drift 0 is expected however few the rows; the mean over which
    half is the vocabulary. The halves go by hash of the row, whatever the order.
    """
    ordered = sorted(before, key=lambda row: hashlib.sha256(row.id.encode()).digest())
    halves = _words(ordered[: len(ordered) // 2]), _words(ordered[len(ordered) // 2 :])
    present = _words(now)
    return sum(_unseen(present, set(known)) - _unseen(other, set(known)) for known, other in (halves, halves[::-1])) / 2


def _words(rows: Sequence[Row]) -> list[str]:
    return [word for row in rows for word in normalised(row.text).split()]


def _unseen(words: Sequence[str], known: set[str]) -> float:
    return sum(word not in known for word in words) / max(1, len(words))
