"""Rows that nearly repeat each other: into one split, or out of training."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from ptpipeline.data.checks import CheckLog
from ptpipeline.data.near import find_representatives
from ptpipeline.data.rows import Columns, split_of
from ptpipeline.records.data import Split
from ptpipeline.task.data import SplitSpec

# A larger cluster, in rows and in its share of the distinct texts, is a template: it would unbalance the splits.
MAX_CLUSTER, MAX_CLUSTER_SHARE = 10, 0.05

KEPT_FIRST: tuple[Split, ...] = ("test", "reserve", "dev", "train")


class Clusters(NamedTuple):
    """The representative of each text's cluster; the `templated` texts have none: their cluster is too large for one
    split.
    """

    representatives: dict[str, str]
    templated: set[str]


def cluster_texts(columns: Columns, rows: Sequence[int]) -> Clusters:
    """Return the clusters of all texts, even those that later checks drop for their labels: no split depends on a
    label.
    """
    normals = {columns.normals[row] for row in rows}
    representatives = find_representatives(normals)
    largest = max(MAX_CLUSTER, int(MAX_CLUSTER_SHARE * len(normals)))
    sizes = Counter(representatives.values())
    templated = {normal for normal, representative in representatives.items() if sizes[representative] > largest}
    kept = {normal: one for normal, one in representatives.items() if normal not in templated}
    return Clusters(kept, templated)


def record_clusters(columns: Columns, rows: Sequence[int], near: Clusters, spec: SplitSpec, log: CheckLog) -> None:
    """Record how many rows stand in the split of their cluster; their representatives have put them there already."""
    together = {row for row in rows if columns.normals[row] in near.representatives}
    moved = sum(columns.splits[row] != split_of(columns.normals[row], spec) for row in rows if row in together)
    templated = {row for row in rows if columns.normals[row] in near.templated}
    details = []
    if together:
        details.append(f"{log.describe_rows(together)} share the split of what they nearly repeat, {moved} moved there")
    if templated:
        details.append(
            f"{len(templated)} rows of a template, too many for one split, stay where their own text puts them"
        )
    log.record("near_duplicate", len(together | templated), "; ".join(details))


def find_near_overlaps(columns: Columns, rows: Sequence[int], near: Clusters) -> set[int]:
    """Return the rows of groups with a near duplicate, another text, in a split that keeps it first: a group is not
    moved for one of its rows.
    """
    texts: dict[tuple[str, Split], set[str]] = defaultdict(set)
    known = [(row, one) for row in rows if (one := near.representatives.get(columns.normals[row])) is not None]
    for row, representative in known:
        texts[representative, columns.splits[row]].add(columns.normals[row])

    def stands_before(row: int, representative: str) -> bool:
        before = KEPT_FIRST[: KEPT_FIRST.index(columns.splits[row])]
        return any(texts.get((representative, split), set()) - {columns.normals[row]} for split in before)

    return {row for row, representative in known if stands_before(row, representative)}
