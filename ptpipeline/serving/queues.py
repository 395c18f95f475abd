"""Rows that wait for an answer, fair over tasks: a task with many rows does not hold up a thousand with one each.

The tasks that have rows take turns (round robin; Nagle 1987, RFC 970). A round gives each of them one turn of at most
TURN tokens. The order within a round is free, so those come first whose prompts are in memory. Rows of one batch are of
similar length; a task whose next row is too long or too short for it comes first in the next batch.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ptpipeline.serving.answerer import Sampling
from ptpipeline.serving.engine import Rendered

TURN = 256  # tokens that a task may have in a round, or one row: several rows of a prompt share its cache
SPREADS = (1.15, 2.0, float("inf"))  # longest to shortest row of a batch: the next one if a batch is not half full


@dataclass(eq=False)
class Row:
    """One text that waits: its tokens, its task, behind how many prompts it is read (an ensemble's members), and what
    takes its answer. `sampling` says how a text is generated behind it; None if labels are ranked.
    """

    text: Rendered
    task: str
    prompts: int
    deliver: Callable[[Any], object]
    sampling: Sampling | None = None

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.text.ids)


@dataclass
class _Draft:
    """A batch while it is filled: its rows, the shortest and the longest, and how many prompts they follow together."""

    limit: int
    rows: list[Row] = field(default_factory=list)
    shortest: int = 0
    longest: int = 0
    prompts: int = 0

    @property
    def padded(self) -> int:
        """Tokens of the batch, with the pads."""
        return self.prompts * self.longest

    @property
    def is_full(self) -> bool:
        """Whether not even the shortest row once more has room."""
        return bool(self.rows) and self.padded + self.longest > self.limit

    def fits(self, row: Row, spread: float) -> bool:
        """Tell whether the row may join; the first one always may."""
        if not self.rows:
            return True
        shortest, longest = min(self.shortest, row.length), max(self.longest, row.length)
        return longest <= spread * shortest and (self.prompts + row.prompts) * longest <= self.limit

    def add(self, row: Row) -> None:
        """Add a row."""
        self.shortest = min(self.shortest, row.length) if self.rows else row.length
        self.longest = max(self.longest, row.length)
        self.prompts += row.prompts
        self.rows.append(row)


class FairQueue:
    """Rows that wait, by task. One thread at a time may use it."""

    def __init__(self) -> None:
        self._tasks: dict[str, OrderedDict[Row, None]] = {}
        self._round: dict[str, None] = {}  # tasks whose turn is still to come
        self._digests = Counter[str]()  # rows that wait by their version
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, row: Row) -> None:
        """Add a row behind all others of its task."""
        self._tasks.setdefault(row.task, OrderedDict())[row] = None
        self._digests[row.text.digest] += 1
        self._count += 1

    def remove(self, row: Row) -> None:
        """Take a row out; one that does not wait is none."""
        own = self._tasks.get(row.task)
        if own is None or row not in own:
            return
        del own[row]
        self._digests[row.text.digest] -= 1
        if not self._digests[row.text.digest]:
            del self._digests[row.text.digest]
        self._count -= 1
        if not own:
            del self._tasks[row.task]
            self._round.pop(row.task, None)

    def holds(self, digest: str) -> bool:
        """Return whether a row of that version waits. Any thread may ask."""
        return digest in self._digests

    def foresee(self, count: int) -> list[Row]:
        """Return the first row of each of the next tasks in the round, of so many tasks at most."""
        return [next(iter(self._tasks[task])) for task in islice(self._round, count)]

    def clear(self) -> list[Row]:
        """Take all rows out."""
        rows = [row for own in self._tasks.values() for row in own]
        for row in rows:
            self.remove(row)
        return rows

    def take(self, tokens: int, is_near: Callable[[Row], bool]) -> list[Row]:
        """Take the rows that run next, of at most so many padded tokens together (a longer row runs alone).

        is_near: whether a row's prompt is in memory.
        """
        draft = _Draft(tokens)
        for spread in SPREADS:
            moved = begun = True
            while (moved or begun) and not draft.is_full:
                moved = self._play_round(draft, spread)
                begun = not draft.is_full and self._begin_round(is_near)
            if 2 * draft.padded > tokens:
                break
        return draft.rows

    def _begin_round(self, is_near: Callable[[Row], bool]) -> bool:
        """Give a turn to all tasks, first to those that had none in the round before; tell whether there are others."""
        others = [task for task in self._tasks if task not in self._round]
        others.sort(key=lambda task: not is_near(next(iter(self._tasks[task]))))
        self._round |= dict.fromkeys(others)
        return bool(others)

    def _play_round(self, draft: _Draft, spread: float) -> bool:
        """Move rows that fit into the draft, task by task; tell whether there were any."""
        before = len(draft.rows)
        for task in list(self._round):
            if draft.is_full:
                break
            taken = 0
            while task in self._tasks and draft.fits(row := next(iter(self._tasks[task])), spread):
                if taken and taken + row.length * row.prompts > TURN:
                    break
                taken += row.length * row.prompts
                draft.add(row)
                self._round.pop(task, None)
                self.remove(row)
        return len(draft.rows) > before
