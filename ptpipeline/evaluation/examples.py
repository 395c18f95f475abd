"""The hard prompt: training rows written out with the task's template, joined by blank lines; or, if that is a chat, as
turns of one chat before the row's own.

Source: Brown et al. 2020, section 2.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from ptpipeline.data.rows import Row
from ptpipeline.data.tokens import space_target
from ptpipeline.errors import BaseModelError
from ptpipeline.models.chat import digest_chat, write_chat
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.prompts.placement import drop_bos
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.task.task import HardPrompt
from ptpipeline.task.template import Part, Template, parse_message, read_template

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


class Front(NamedTuple):
    """What stands before a row's text, as token ids; if these are a chat, `turn` is the template of a row's turn of it,
    else the row keeps its own template.
    """

    ids: list[int]
    turn: Template | None = None


class Writer(NamedTuple):
    """Writes rows as a base model reads them: the manifest's template, then the label's words or the target.

    `messages` are the role and content of each message, if the task's template is a chat: the rows are then turns of
    one chat, which the base's chat template writes.
    """

    base: FrozenBase
    manifest: PromptManifest
    messages: Sequence[tuple[str, str]] = ()

    def write(self, wanted: HardPrompt, train: Sequence[Row], room: int) -> Front:
        """Return BOS, instruction and examples, each followed by a blank line, or the turns of a chat whose first
        message begins with the instruction: at most `room` tokens.

        Warns if fewer examples fit than are wanted; empty if the instruction does not fit, or there is neither an
        instruction nor an example that fits.
        """
        known = [row for row in train if not self.manifest.labels or row.label in self.manifest.labels]
        examples = choose_examples(known, wanted.examples, bool(self.manifest.labels))
        written = self._write_turns(wanted, examples, room) if self.manifest.chat and examples else None
        front, count = written or self._write_texts(wanted, examples, room)
        if count < wanted.examples:
            log.warning(
                "%s: the hard prompt has %d of %d examples: there is no room for more, or there are no more rows",
                self.manifest.task,
                count,
                wanted.examples,
            )
        return front

    def _write_texts(self, wanted: HardPrompt, examples: Sequence[Row], room: int) -> tuple[Front, int]:
        """The front of texts one behind the other, and how many of the examples it has."""
        blank = self.base.encode("\n\n", False)
        start = self._begin([])
        if wanted.instruction.strip():
            start += self.base.encode(wanted.instruction.strip(), False) + blank
        fitting = _select_fitting(start, [self._write_example(row) + blank for row in examples], room)
        if len(start) > room or not (fitting or wanted.instruction.strip()):
            return Front([]), len(fitting)
        return Front(start + [token for example in fitting for token in example]), len(fitting)

    def _write_example(self, row: Row) -> list[int]:
        text = read_template(self.manifest).render(row.fields, f"row {row.id}")
        return drop_bos(self.base.encode(text, False), self.base.bos) + self.base.encode(self._answer(text, row), False)

    def _answer(self, text: str, row: Row) -> str:
        """What answers the text."""
        return self.manifest.labels[row.label] if self.manifest.labels else space_target(text, row.label)

    def _begin(self, ids: list[int]) -> list[int]:
        return ([] if self.base.bos is None else [self.base.bos]) + drop_bos(ids, self.base.bos)

    # ---------------------------------------------------------------- a chat

    def _write_turns(self, wanted: HardPrompt, examples: Sequence[Row], room: int) -> tuple[Front, int] | None:
        """The front of turns of one chat, and how many examples it has; None if they cannot be written so."""
        chat = self._open_chat(len(examples))
        if chat is None:
            return None
        instruction = f"{wanted.instruction.strip()}\n\n" if wanted.instruction.strip() else ""
        opening = _insert(chat.opening, instruction) if chat.opening else ()
        turns = [self._fill(turn, row) for turn, row in zip(chat.turns, examples, strict=True)]
        if not opening:
            turns[0] = _insert(turns[0], instruction)
        for count in range(len(turns), 0, -1):
            parts = (*opening, *(part for turn in turns[:count] for part in turn))
            ids = self._begin(self.base.encode(Template(parts).render({}, "the hard prompt"), False))
            if len(ids) <= room:
                return Front(ids, Template(chat.last)), count
        return None

    def _open_chat(self, count: int) -> "_Chat | None":
        """The parts of a chat of so many examples and a last turn, as the base's chat template writes them.

        None, and a warning, if the messages are not those of the prompt, or the chat template refuses so many.
        """
        form = self.manifest.chat
        same = form and [content for _, content in self.messages] == form.parts[1::2]
        if form is None or not same or digest_chat(self.base.chat) != form.template:
            log.warning("%s: %s", self.manifest.task, _SEPARATE)
            return None
        names = [bool(parse_message(content).names) for _, content in self.messages]
        first = names.index(True)  # what stands before it is said once
        opening, turn = list(self.messages[:first]), [*self.messages[first:], ("assistant", _ANSWER)]
        try:
            written = write_chat(self.base.ref.name, self.base.chat, [*opening, *turn * count, *turn[:-1]])
        except BaseModelError as error:
            log.warning("%s: %s (%s)", self.manifest.task, _SEPARATE, error)
            return None
        pieces = [
            (Part(own, control=True), *parse_message(content).parts)
            for own, content in zip(written.parts[::2], [*written.parts[1::2], ""], strict=True)
        ]
        ends = [first + place * len(turn) for place in range(count + 1)]
        turns = [_join(pieces[start:end]) for start, end in pairwise(ends)]
        return _Chat(_join(pieces[:first]), turns, _join(pieces[ends[-1] :]))

    def _fill(self, turn: tuple[Part, ...], row: Row) -> tuple[Part, ...]:
        """The turn with the texts of a row and its answer."""
        *asked, _ = turn
        words = self._answer(asked[-1].text, row)
        return (*(Part(row.fields[part.text]) if part.field else part for part in asked), Part(words))


class _Chat(NamedTuple):
    """The parts of a chat: what is said once, the turn of each example up to the place of its answer, and the last
    turn.
    """

    opening: tuple[Part, ...]
    turns: list[tuple[Part, ...]]
    last: tuple[Part, ...]


_ANSWER = "the answer"  # holds the place of an example's
_SEPARATE = "the examples of the hard prompt are chats of their own, because they cannot be written as turns of one"


def _join(pieces: Iterable[tuple[Part, ...]]) -> tuple[Part, ...]:
    return tuple(part for piece in pieces for part in piece)


def _insert(parts: tuple[Part, ...], text: str) -> tuple[Part, ...]:
    """The parts with a text at the beginning of the first message, behind what the chat template writes."""
    return (parts[0], Part(text), *parts[1:]) if text else parts


def _select_fitting(start: list[int], examples: list[list[int]], room: int) -> list[list[int]]:
    """The first examples that fit behind the start."""
    used, fitting = len(start), []
    for example in examples:
        used += len(example)
        if used > room:
            break
        fitting.append(example)
    return fitting
