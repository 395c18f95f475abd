"""The hard prompt in words: training rows chosen and written out with the task's template, joined by blank lines (Brown
et al. 2020, section 2).
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from ptpipeline.data.rows import Row
from ptpipeline.data.template import render
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.records import PromptManifest
from ptpipeline.task.task import HardPrompt

log = logging.getLogger(__name__)


def chosen(train: Sequence[Row], count: int, labelled: bool) -> list[Row]:
    """`count` training rows, out of the shorter half of each label's in turn, by a hash of their ids.

    The same rows are chosen whatever order they come in. Where answers are free texts they count as one label.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in train:
        groups[row.label if labelled else ""].append(row)
    turns = []
    for rows in groups.values():
        shorter = sorted(rows, key=lambda row: (len(row.text) + len(row.label), row.id))[: (len(rows) + 1) // 2]
        turns += list(enumerate(sorted(shorter, key=_order)))
    first = sorted(turns, key=lambda turn: (turn[0], _order(turn[1])))[:count]
    return sorted((row for _, row in first), key=_order)


def _order(row: Row) -> str:
    return hashlib.sha256(f"hard prompt:{row.id}".encode()).hexdigest()


class Writer(NamedTuple):
    """Writes rows as a model and a manifest have them: template, then the label's words or the target."""

    base: FrozenBase
    manifest: PromptManifest

    def hard_prompt(self, wanted: HardPrompt, train: Sequence[Row], room: int) -> list[int]:
        """Token ids of BOS, instruction and examples, with a blank line behind each; as many examples as `room` tokens
        hold.

        Empty, with a warning, where not even one fits.
        """
        blank = self.base.encode("\n\n", False)
        start = [] if self.base.bos is None else [self.base.bos]
        if wanted.instruction.strip():
            start += self.base.encode(wanted.instruction.strip(), False) + blank
        known = [row for row in train if not self.manifest.labels or row.label in self.manifest.labels]
        examples = [self._example(row) + blank for row in chosen(known, wanted.examples, bool(self.manifest.labels))]
        fitting = _fitting(start, examples, room)
        if len(fitting) < wanted.examples:
            log.warning(
                "%s: the hard prompt has %d of %d examples: no more fit the context, or there are no more",
                self.manifest.task,
                len(fitting),
                wanted.examples,
            )
        said = bool(fitting or wanted.instruction.strip()) and len(start) <= room
        return start + [token for example in fitting for token in example] if said else []

    def _example(self, row: Row) -> list[int]:
        text = render(self.manifest.template, row.text)
        words = (
            self.manifest.labels[row.label]
            if self.manifest.labels
            else ("" if text[-1:].isspace() else " ") + row.label.strip()
        )
        return self.base.encode(text, False) + self.base.encode(words, False)


def _fitting(start: list[int], examples: list[list[int]], room: int) -> list[list[int]]:
    """The first examples that fit behind the start."""
    used, found = len(start), []
    for example in examples:
        used += len(example)
        if used > room:
            break
        found.append(example)
    return found
