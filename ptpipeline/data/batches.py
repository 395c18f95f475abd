"""Length-bucketed batches: rows of similar length run together, so that little of a pass is padding."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def group_by_length(rows: Sequence[Item], length: Callable[[Item], int], tokens: int) -> Iterator[list[Item]]:
    """Yield groups in rising length, at most `tokens` padded tokens each (a longer row is a group of its own).

    Rows of equal length keep their order, so the same rows always form the same groups.
    """
    group: list[Item] = []
    for row in sorted(rows, key=length):
        if group and (len(group) + 1) * length(row) > tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
