"""The hard prompt: training rows written out with the task's template, joined by blank lines.

Source: Brown et al. 2020, section 2.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from ptpipeline.data.rows import Row
from ptpipeline.data.tokens import space_target
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.prompts.placement import drop_bos
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.task.task import HardPrompt
from ptpipeline.task.template import read_template

log = logging.getLogger(__name__)


def choose_examples(train: Sequence[Row], count: int, labelled: bool) -> list[Row]:
    """Return `count` training rows, taken from the labels in turn, each from the shorter half of its rows.

    The order is by a hash of the rows' ids, so that the same rows are chosen in any order. Free texts count as one
    label.
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
    """Writes rows as a base model reads them: the manifest's template, then the label's words or the target."""

    base: FrozenBase
    manifest: PromptManifest

    def write(self, wanted: HardPrompt, train: Sequence[Row], room: int) -> list[int]:
        """Return the token ids of BOS, instruction and examples, each followed by a blank line: at most `room` tokens.

        Warns if fewer examples fit than are wanted; empty if the instruction does not fit, or there is neither an
        instruction nor an example that fits.
        """
        blank = self.base.encode("\n\n", False)
        start = [] if self.base.bos is None else [self.base.bos]
        if wanted.instruction.strip():
            start += self.base.encode(wanted.instruction.strip(), False) + blank
        known = [row for row in train if not self.manifest.labels or row.label in self.manifest.labels]
        examples = [
            self._write_example(row) + blank
            for row in choose_examples(known, wanted.examples, bool(self.manifest.labels))
        ]
        fitting = _select_fitting(start, examples, room)
        if len(fitting) < wanted.examples:
            log.warning(
                "%s: the hard prompt has %d of %d examples: there is no room for more, or there are no more rows",
                self.manifest.task,
                len(fitting),
                wanted.examples,
            )
        if len(start) > room or not (fitting or wanted.instruction.strip()):
            return []
        return start + [token for example in fitting for token in example]

    def _write_example(self, row: Row) -> list[int]:
        text = read_template(self.manifest).render(row.fields, f"row {row.id}")
        words = self.manifest.labels[row.label] if self.manifest.labels else space_target(text, row.label)
        return drop_bos(self.base.encode(text, False), self.base.bos) + self.base.encode(words, False)


def _select_fitting(start: list[int], examples: list[list[int]], room: int) -> list[list[int]]:
    """The first examples that fit behind the start."""
    used, fitting = len(start), []
    for example in examples:
        used += len(example)
        if used > room:
            break
        fitting.append(example)
    return fitting
