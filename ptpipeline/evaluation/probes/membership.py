"""Membership inference: whether a stranger can tell the prompt's training rows from others by their likelihoods."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, mannwhitneyu
from sklearn.metrics import roc_auc_score

from ptpipeline.data.rows import Row
from ptpipeline.data.sample import sample_rows
from ptpipeline.evaluation.probes.likelihood import bare_likelihoods, keep_within_limit, prompted_likelihoods
from ptpipeline.evaluation.probes.queries import NOTHING, Known
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.engine import Engine

ROWS = 250
RESAMPLES = 2000
SEED = 0

Values = NDArray[np.float64]


def measure_membership(
    engine: Engine, artifact: Artifact, train: Sequence[Row], test: Sequence[Row], known: Known = NOTHING
) -> dict[str, float]:
    """Return the AUC of the loss-threshold attack with a two-sided 95% bootstrap interval; .5 is no better than chance.

    Up to 250 rows of each split are compared, the same number of every label from both, so that label shares give no
    hint. `privacy.rows` counts the rows of one split; rows without a finite likelihood are left out. `auc_zero_shot` is
    the same attack on the base without the prompt: what it finds lies in the rows, not in the prompt. If fewer than two
    rows are left, only the count is returned. Source: Yeom et al. 2018, section 3.2.
    """
    if not train:  # the training rows of an imported prompt are unknown
        return {}
    key = (lambda row: "") if artifact.manifest.generate else (lambda row: row.label)  # few free texts are equal
    inside, outside = _balance(
        keep_within_limit(engine, artifact, train), keep_within_limit(engine, artifact, test), key
    )
    sides = ((inside, NOTHING), (outside, known))  # only the test rows were evaluated
    ours, theirs = (_finite(prompted_likelihoods(engine, artifact, rows, own)) for rows, own in sides)
    count = min(len(ours), len(theirs))
    if count < 2:
        return {"privacy.rows": count}
    low, high = interval(ours, theirs)
    bare = (_finite(bare_likelihoods(engine, artifact, rows, own)) for rows, own in sides)
    return {
        "privacy.rows": count,
        "privacy.auc": attack(ours, theirs),
        "privacy.low": low,
        "privacy.high": high,
        "privacy.auc_zero_shot": attack(*bare),
    }


def attack(inside: Values, outside: Values) -> float:
    """Return the share of pairs in which the training row's answer is likelier; ties count half."""
    member = [1] * len(inside) + [0] * len(outside)
    return float(roc_auc_score(member, np.concatenate([inside, outside])))


def interval(inside: Values, outside: Values) -> tuple[float, float]:
    """Return the two-sided 95% percentile interval of `attack` over resamples of both sides.

    The AUC is the Mann-Whitney U divided by the number of pairs (Hanley and McNeil 1982).
    """

    def area(one: Values, other: Values, axis: int = -1) -> Values:  # [S, rows] each -> [S]
        pairs = one.shape[axis] * other.shape[axis]
        share: Values = mannwhitneyu(one, other, axis=axis, method="asymptotic").statistic / pairs
        return share

    bounds = bootstrap(
        (inside, outside),
        area,
        n_resamples=RESAMPLES,
        batch=200,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(bounds.low), float(bounds.high)


def _finite(values: Sequence[float]) -> Values:
    array = np.array(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _balance(train: Sequence[Row], test: Sequence[Row], key: Callable[[Row], str]) -> tuple[list[Row], list[Row]]:
    """The same number of rows of each key from both sides: at most ROWS in all, but at least one of each key."""
    ours, theirs = _group(train, key), _group(test, key)
    shared = sorted(set(ours) & set(theirs))
    inside, outside = [], []
    for name in shared:
        count = min(len(ours[name]), len(theirs[name]), max(1, ROWS // len(shared)))
        inside += sample_rows(ours[name], count)
        outside += sample_rows(theirs[name], count)
    return inside, outside


def _group(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups
