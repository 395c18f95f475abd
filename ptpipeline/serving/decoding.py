"""Texts that are generated together, step by step: rows join and leave between steps, each with its own prompt.

One thread drives a decoder. A step gives every row one more token, and then reads the texts of rows that joined, as far
as there is room for them. A long text is read in parts, one in each step, so that the others wait for no more than one.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.errors import ArtifactError, ContextError, PtpError
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, PrefixCache, stack_caches
from ptpipeline.models.slots import Slots
from ptpipeline.serving.answerer import Piece, Sampling
from ptpipeline.serving.heads import WORTH, narrow, share_heads
from ptpipeline.serving.sampling import Draw, choose
from ptpipeline.serving.streaming import TextStream

SLOTS = 16_384  # tokens, pads among them, whose keys and values the rows of a decoder hold together
READ_TOKENS = 512  # tokens of texts that a step reads on a CPU: the rows under way wait no longer for their next token
GROUPS = 2  # of rows that could step in one pass: one far longer than the others would fill their room with pads


class Emitted(NamedTuple):
    """What a step gave a row: the next piece of its text, or the error that ended it.

    A row ends with a piece that has a `finish`, or with an error; then its handle is no longer known.
    """

    handle: int
    outcome: Piece | Exception


@dataclass(eq=False)
class _Row:
    """A text that is generated: what it stands behind, how its tokens are drawn, what it has so far."""

    handle: int
    cache: PrefixCache | None
    input: Input
    read: int  # number of tokens that the model is given, with those of the prompt
    limit: int
    draw: Draw
    stream: TextStream
    group: "_Group" = field(default_factory=lambda: _Group())
    tokens: list[int] = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Number of tokens that the row may have in the end."""
        return self.read + self.limit


@dataclass(eq=False)
class _Group:
    """Rows that step in one pass, in the order of their slots; `members` are these and those that will be."""

    members: list[_Row] = field(default_factory=list)
    rows: list[_Row] = field(default_factory=list)
    slots: list[Slots] = field(default_factory=list)

    def count_slots(self, more: Sequence[_Row] = ()) -> int:
        """Return how many tokens the members hold in the end, pads among them, with `more` of them."""
        rows = [*self.members, *more]
        return len(rows) * max((row.longest for row in rows), default=0)


class Decoder:
    """Generates the texts of many rows on one base; `slots` bounds the tokens that they hold in memory together.

    What fails ends as few rows as it must: the one whose text cannot be read, or the group whose keys and values are
    unknown since. If a step raises all the same, what its rows have is unknown: take another decoder.
    """

    def __init__(self, base: FrozenBase, slots: int = SLOTS) -> None:
        self.base = base
        self._room = slots
        self._next = 0
        self._waiting: deque[_Row] = deque()
        self._reading: deque[_Row] = deque()  # rows of whose long texts a part is read in each step
        self._groups: list[_Group] = []

    def __len__(self) -> int:
        """Return the number of rows that have not ended, those that wait for room among them."""
        return len(self._waiting) + sum(len(group.members) for group in self._groups)

    @property
    def waiting(self) -> int:
        """Number of rows that have joined and not begun: their texts are read as soon as the bounds leave room."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """Number of tokens for which the rows that have begun leave room."""
        return self._room - sum(group.count_slots() for group in self._groups)

    @property
    def read_tokens(self) -> int:
        """How many tokens of texts a step reads."""
        return READ_TOKENS if self.base.device.type == "cpu" else self.base.tokens_per_pass

    def join(
        self, cache: PrefixCache | None, ids: Sequence[int], sampling: Sampling, limit: int, prompt: int = 0
    ) -> int:
        """Add a row behind the prompt with that index of the cache, and return its handle; nothing is computed yet.

        ids: the text's tokens. limit: how many tokens to generate at most if `sampling` does not say.
        Raises ContextError if prompt, text and limit together are longer than the base's context or the memory bound.
        """
        most = limit if sampling.max_tokens is None else sampling.max_tokens
        stream = TextStream(self.base.tokenizer, sampling.stop)
        read = len(ids) + (0 if cache is None else int(cache.lengths[prompt]))
        row = _Row(self._next, cache, Input(ids, (), prompt), read, most, Draw.of(sampling), stream)
        bound = min(self.base.context, self._room)
        if row.longest > bound:
            raise ContextError(
                f"prompt and text have {row.read} tokens and {most} more are to be generated; together there is room "
                f"for {bound}: shorten the text, or ask for at most {max(0, bound - row.read)} tokens"
            )
        self._next += 1
        self._waiting.append(row)
        return row.handle

    @torch.inference_mode()
    def step(self) -> list[Emitted]:
        """Compute one more token of every row; return what is new, in the order in which the rows joined.

        A row is left out if its new token gave no text yet: half of a character, or what may become a stop string.
        """
        emitted = [own for group in self._groups if group.rows for own in self._continue(group)]
        self._forget_empty()
        try:
            read = self._read_part()
        except Exception as error:  # noqa: BLE001, the other rows go on
            read = []
            emitted += _end([self._reading.popleft()], error)
        for rows in [*read, *self._split(self._take_waiting())]:
            emitted += self._begin(rows)
        self._forget_empty()
        return sorted(emitted, key=lambda own: own.handle)

    @torch.inference_mode()
    def leave(self, handle: int) -> None:
        """Drop a row before its end; nothing happens if it has ended."""
        self._waiting = deque(row for row in self._waiting if row.handle != handle)
        self._reading = deque(row for row in self._reading if row.handle != handle)
        for group in self._groups:
            _drop(group, [index for index, row in enumerate(group.rows) if row.handle == handle])
            group.members = [row for row in group.members if row.handle != handle]
        self._forget_empty()

    def _forget_empty(self) -> None:
        self._groups = [group for group in self._groups if group.members]

    def _joins_others(self, row: _Row) -> bool:
        return self.base.steps_together(row.longest)

    def _take_waiting(self) -> list[_Row]:
        """Take the rows to begin now, first come first served, as many as the bounds on memory and time leave room
        for; at least one if no row is under way. Rows with long texts are taken too, and read from the next step on.
        """
        taken, tokens = list[_Row](), self.read_tokens // (2 if self._reading else 1)
        while self._waiting:
            row = self._waiting[0]
            long = len(row.input.text) > self.read_tokens and self._reads_in_parts(row)
            if not long and taken and tokens < len(row.input.text):
                break
            group = self._find_group(row)
            if group is None:
                break
            self._waiting.popleft()
            group.members.append(row)
            row.group = group
            if long:
                self._reading.append(row)
            else:
                taken.append(row)
                tokens -= len(row.input.text)
        return taken

    def _find_group(self, row: _Row) -> _Group | None:
        """Return the group that a row joins with the fewest pads, or a new one if there is room for the row alone; None
        if there is no room.
        """
        joins = self._joins_others(row)
        others = [group for group in self._groups if self._joins_others(group.members[0])]
        held = self._room - self.free
        if joins and others:
            best = min(others, key=lambda group: group.count_slots([row]) - group.count_slots())
            if held - best.count_slots() + best.count_slots([row]) <= self._room:
                return best
        if held + row.longest > self._room or (joins and len(others) >= GROUPS):
            return None
        self._groups.append(_Group())
        return self._groups[-1]

    def _reads_in_parts(self, row: _Row) -> bool:
        return narrow(self.base, row.cache, [row.input]) is not None

    def _read_part(self) -> list[list[_Row]]:
        """Read one part of the first long text; if only its last part is left, return it as a pass of its own."""
        if not self._reading:
            return []
        row, part = self._reading[0], self.read_tokens // 2
        causal = narrow(self.base, row.cache, [row.input])
        if causal is None or len(row.input.text) <= part:
            return [[self._reading.popleft()]]
        row.cache = causal.extend(row.cache, [row.input._replace(text=row.input.text[:part])]).cache
        row.input = Input(row.input.text[part:], (), 0)
        return []

    def _split(self, rows: Sequence[_Row]) -> list[list[_Row]]:
        """Return the rows whose texts are read in one pass: those of alike lengths."""
        together = [row for row in rows if self._joins_others(row)]
        prompted = [row for row in together if row.cache is not None]
        bare = [row for row in together if row.cache is None]
        alone = [[row] for row in rows if not self._joins_others(row)]
        return [*_split_by_length(prompted), *_split_by_length(bare), *alone]

    def _begin(self, rows: list[_Row]) -> list[Emitted]:
        """Read the texts of rows, and give each its first token; if that fails, read its halves."""
        emitted = [_end_empty(row) for row in rows if row.limit < 1]
        rows = [row for row in rows if row.limit >= 1]
        if not rows:
            return emitted
        try:
            states, caches = self.base.begin(*share_heads(self.base, *_stack(rows)))
            own, kept = self._extend(rows, states)
        except Exception as error:  # noqa: BLE001, the other rows go on
            if len(rows) == 1:
                return emitted + _end(rows, error)
        else:
            for group in {id(rows[index].group): rows[index].group for index in kept}.values():
                own += _add(group, rows, [index for index in kept if rows[index].group is group], caches)
            return emitted + own
        middle = len(rows) // 2  # behind the error, which holds the memory of what failed
        return emitted + self._begin(rows[:middle]) + self._begin(rows[middle:])

    def _continue(self, group: _Group) -> list[Emitted]:
        """Give every row of a group one more token, and drop the rows that end with it."""
        emitted = list[Emitted]()
        try:
            tokens = torch.tensor([row.tokens[-1] for row in group.rows], device=self.base.device)  # [B]
            emitted, kept = self._extend(group.rows, self.base.step(group.slots, tokens))
            _drop(group, sorted(set(range(len(group.rows))) - set(kept)))
        except Exception as error:  # noqa: BLE001, the other rows go on
            return emitted + _clear(group, error)
        return emitted

    def _extend(self, rows: Sequence[_Row], states: Tensor) -> tuple[list[Emitted], list[int]]:
        """Give each row the token that its state [B, H] predicts; return what is new, and which rows go on."""
        emitted, kept = list[Emitted](), list[int]()
        tokens = choose(self.base.compute_logits(states), [row.draw for row in rows])
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            outcome: Piece | Exception
            try:
                outcome = _advance(row, token, self.base.end_tokens)
            except Exception as error:  # noqa: BLE001, the other rows go on
                outcome = error
            if isinstance(outcome, Piece) and not outcome.finish:
                kept.append(index)
            else:
                row.group.members.remove(row)
            if not isinstance(outcome, Piece) or outcome.text or outcome.finish:
                emitted.append(Emitted(row.handle, outcome))
        return emitted, kept


def _advance(row: _Row, token: int | None, ends: frozenset[int]) -> Piece | PtpError:
    """Return what a row's next token adds to its text."""
    if token is None:
        return ArtifactError(
            "behind prompt and text, the model's logits are no finite numbers; promote another version"
        )
    if token in ends:
        return Piece(row.stream.close(), len(row.tokens), row.read, "stop")
    row.tokens.append(token)
    text = row.stream.push(token)
    if row.stream.stopped:
        return Piece(text, len(row.tokens), row.read, "stop")
    if len(row.tokens) == row.limit:
        return Piece(text + row.stream.close(), len(row.tokens), row.read, "length")
    return Piece(text, len(row.tokens), row.read)


def _split_by_length(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Return passes that save more pads than one more pass over the weights costs."""
    ordered = sorted(rows, key=lambda row: -len(row.input.text))
    widths = [len(row.input.text) for row in ordered]
    saved = [(widths[0] - widths[place]) * (len(rows) - place) for place in range(len(rows))]
    if max(saved, default=0) < WORTH:
        return [ordered]
    place = saved.index(max(saved))
    return [*_split_by_length(ordered[:place]), *_split_by_length(ordered[place:])]


def _end_empty(row: _Row) -> Emitted:
    row.group.members.remove(row)
    return Emitted(row.handle, Piece("", 0, row.read, "length"))


def _end(rows: Sequence[_Row], error: Exception) -> list[Emitted]:
    """End rows that have no keys and values yet by an error."""
    for row in rows:
        row.group.members.remove(row)
    return [Emitted(row.handle, error) for row in rows]


def _clear(group: _Group, error: Exception) -> list[Emitted]:
    """End all rows of a group that have keys and values by an error: what these are now is unknown."""
    ended = [row for row in group.rows if row in group.members]  # else it ended before the error
    group.rows, group.slots = [], []
    return _end(ended, error)


def _add(group: _Group, rows: Sequence[_Row], chosen: Sequence[int], caches: Sequence[PrefixCache]) -> list[Emitted]:
    """Add the rows of these indexes to a group, with their entries of the caches; what fails ends the whole group."""
    group.rows += [rows[index] for index in chosen]
    try:
        if not group.slots:
            group.slots = [Slots() for _ in caches]
        for slots, cache in zip(group.slots, caches, strict=True):
            slots.add(PrefixCache(tuple(tensor[chosen] for tensor in cache.tensors), cache.lengths[chosen]))
    except Exception as error:  # noqa: BLE001, the rows of other groups go on
        return _clear(group, error)
    return []


def _drop(group: _Group, indexes: Sequence[int]) -> None:
    """Drop rows of a group, given in order; each time, the last row takes the place that is free."""
    for index in reversed(indexes):
        for slots in group.slots:
            slots.remove(index)
        last = group.rows.pop()
        if index < len(group.rows):
            group.rows[index] = last


def _stack(rows: Sequence[_Row]) -> tuple[PrefixCache | None, list[Input]]:
    """Return the rows' caches as one, and their inputs behind its prompts. Rows without a prompt have no cache."""
    caches = {id(row.cache): row.cache for row in rows if row.cache is not None}
    starts = dict(zip(caches, accumulate((len(cache.lengths) for cache in caches.values()), initial=0), strict=False))
    inputs = [row.input._replace(prompt=starts.get(id(row.cache), 0) + row.input.prompt) for row in rows]
    return (stack_caches(list(caches.values())) if caches else None), inputs
