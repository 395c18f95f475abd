"""The history of one alias as promoters and readers saw it, and whether it is linearisable: whether every operation can
have happened at one instant between its call and its answer, so that each read returns what was written last.

Wing and Gong, "Testing and verifying concurrent objects", 1993. The promotions of an alias have one order, their seq,
so there is never a choice: reads of what the alias names now can always come first, then only the next promotion can.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ptpipeline.records.versions import Promotion


class Operation(NamedTuple):
    """A promotion that became the head, or a read by a reader of the store alone; `seq` 0 is "no such alias yet".

    Times are seconds of the machine's monotonic clock. A promotion has `ended` as soon as somebody was told that the
    store shows it, or a later one: until then a reader may find it or not.
    """

    kind: Literal["promotion", "read"]
    seq: int
    began: float
    ended: float = math.inf
    who: str = ""


class Alias(NamedTuple):
    """An alias of a task."""

    task: str
    name: str


@dataclass
class Witnesses:
    """What workers saw: when each job began, from when on the store was known to show a promotion, and what was read.

    `wrong`: reads that got neither a whole prompt nor "no such alias".
    """

    began: dict[str, float] = field(default_factory=dict)
    shown: dict[Alias, list[tuple[int, float]]] = field(default_factory=dict)
    reads: dict[Alias, list[Operation]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def show(self, alias: Alias, seq: int, at: float) -> None:
        """Note that the store was known to show that promotion, or a later one, from then on."""
        self.shown.setdefault(alias, []).append((seq, at))

    def count_reads(self) -> int:
        """Count the reads that were answered."""
        return sum(map(len, self.reads.values())) + len(self.wrong)

    def history(self, alias: Alias, rows: Iterable[Promotion]) -> list[Operation]:
        """Return the reads of the alias with the promotions in the ledger; a promotion's reason is its job's name."""
        shown = self.shown.get(alias, [])
        promotions = [
            Operation(
                "promotion",
                row.seq,
                began=self.began.get(row.reason, -math.inf),
                ended=min((at for seq, at in shown if seq >= row.seq), default=math.inf),
                who=row.reason,
            )
            for row in rows
        ]
        return promotions + self.reads.get(alias, [])


def find_violations(operations: Iterable[Operation]) -> Iterator[str]:
    """Yield why a history is not linearisable: its first operation that fits nowhere; nothing if it is."""
    left, named = sorted(operations, key=lambda operation: operation.began), 0
    while left:
        first_end = min(operation.ended for operation in left)
        possible = [operation for operation in left if operation.began <= first_end]
        reads = [operation for operation in possible if operation.kind == "read" and operation.seq == named]
        if reads:
            left = [operation for operation in left if operation not in reads]
            continue
        following = [each for each in possible if each.kind == "promotion" and each.seq == named + 1]
        if not following:
            if first_end < math.inf:  # else only promotions are left that nobody was told of
                yield _explain(named, min(possible, key=lambda operation: operation.ended))
            return
        left.remove(following[0])
        named += 1


def _explain(named: int, operation: Operation) -> str:
    return (
        f"{operation.kind} of seq {operation.seq} by {operation.who or 'a reader'} from {operation.began:.3f} to "
        f"{operation.ended:.3f}, while the alias named seq {named}"
    )
