"""How far rows differ from earlier ones: in labels, length and vocabulary."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from ptpipeline.data.near import normalise
from ptpipeline.data.rows import Row
from ptpipeline.errors import DataError


def measure_drift(before: Sequence[Row], now: Sequence[Row], labelled: bool = True) -> dict[str, float]:
    """Return distances in 0..1 between the rows of two snapshots, with the p-values of scipy's tests; 0 is no drift.

    `drift.labels` is the total variation distance of the label shares, with the p of a chi-squared test; it is left out
    if labels are free texts (`labelled` False). `drift.length` is the Kolmogorov-Smirnov statistic of the numbers of
    words, with its asymptotic p. `drift.vocabulary`: see `_vocabulary`; it may be below 0 by chance.

    Raises DataError if either side has fewer than two rows.
    """
    if min(len(before), len(now)) < 2:
        raise DataError(
            f"drift from {len(before)} rows to {len(now)}: each side needs at least two rows; give whole splits"
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

    test = ks_2samp(*([len(row.text.split()) for row in rows] for rows in (before, now)), method="asymp")
    return {"drift.length": float(test.statistic), "drift.length_p": float(test.pvalue)}


def _vocabulary(before: Sequence[Row], now: Sequence[Row]) -> float:
    """Share of word occurrences in `now` that one half of `before` lacks, minus that share in its other half.

    Both shares are of the same vocabulary, so without drift 0 is expected for any number of rows. Each half is the
    vocabulary once, and the two results are averaged. The halves are taken by a hash of the rows, in any order.
    """
    ordered = sorted(before, key=lambda row: hashlib.sha256(row.id.encode()).digest())
    halves = _words(ordered[: len(ordered) // 2]), _words(ordered[len(ordered) // 2 :])
    present = _words(now)
    return sum(_unseen(present, set(known)) - _unseen(other, set(known)) for known, other in (halves, halves[::-1])) / 2


def _words(rows: Sequence[Row]) -> list[str]:
    return [word for row in rows for word in normalise(row.text).split()]


def _unseen(words: Sequence[str], known: set[str]) -> float:
    return sum(word not in known for word in words) / max(1, len(words))
