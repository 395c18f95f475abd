"""Membership inference: whether a stranger can tell the prompt's training rows from others by how likely their answers
are.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, mannwhitneyu
from sklearn.metrics import roc_auc_score

from ptpipeline.data.rows import Row
from ptpipeline.evaluation.probes.asking import sampled
from ptpipeline.evaluation.probes.likelihood import bare, prompted, within_limit
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.engine import Engine

ROWS = 250
RESAMPLES = 2000
SEED = 0

Values = NDArray[np.float64]


def membership(engine: Engine, artifact: Artifact, train: Sequence[Row], test: Sequence[Row]) -> dict[str, float]:
    """AUC of the loss-threshold attack (Yeom et al. 2018, section 3.2) with a two-sided 95% bootstrap interval; .5
    tells nothing.

    Of up to 250 rows of each split, as many of every label from the one as from the other, so that label shares tell
    nothing. `privacy.rows` counts those of one split; rows without a finite likelihood are left out. `auc_zero_shot` is
    the same attack on the base without the prompt: what it finds is in the rows, not in the prompt. Where fewer than
    two rows are left there is the count alone.
    """
    if not train:  # of an imported prompt nobody knows them
        return {}
    key = (lambda row: "") if artifact.manifest.generate else (lambda row: row.label)  # hardly two free texts are alike
    inside, outside = _balanced(within_limit(engine, artifact, train), within_limit(engine, artifact, test), key)
    ours, theirs = (_finite(prompted(engine, artifact, rows)) for rows in (inside, outside))
    count = min(len(ours), len(theirs))
    if count < 2:
        return {"privacy.rows": count}
    low, high = interval(ours, theirs)
    found = {"privacy.rows": count, "privacy.auc": attack(ours, theirs), "privacy.low": low, "privacy.high": high}
    return found | {
        "privacy.auc_zero_shot": attack(*(_finite(bare(engine, artifact, rows)) for rows in (inside, outside)))
    }


def attack(inside: Values, outside: Values) -> float:
    """Share of pairs in which the training row's answer is the likelier one, ties half."""
    member = [1] * len(inside) + [0] * len(outside)
    return float(roc_auc_score(member, np.concatenate([inside, outside])))


def interval(inside: Values, outside: Values) -> tuple[float, float]:
    """Two-sided 95% percentile interval of `attack` over resamples of both sides."""

    def area(one: Values, other: Values, axis: int = -1) -> Values:
        pairs = one.shape[axis] * other.shape[axis]
        share: Values = mannwhitneyu(one, other, axis=axis, method="asymptotic").statistic / pairs
        return share

    found = bootstrap(
        (inside, outside),
        area,
        n_resamples=RESAMPLES,
        batch=200,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def _finite(values: Sequence[float]) -> Values:
    found = np.array(values, dtype=np.float64)
    return found[np.isfinite(found)]


def _balanced(train: Sequence[Row], test: Sequence[Row], key: Callable[[Row], str]) -> tuple[list[Row], list[Row]]:
    """As many rows of each key from both sides, 250 at most in all."""
    ours, theirs = _grouped(train, key), _grouped(test, key)
    shared = sorted(set(ours) & set(theirs))
    inside, outside = [], []
    for name in shared:
        count = min(len(ours[name]), len(theirs[name]), max(1, ROWS // len(shared)))
        inside += sampled(ours[name], count)
        outside += sampled(theirs[name], count)
    return inside, outside


def _grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups
