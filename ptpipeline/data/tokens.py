"""Texts and labels as token ids, with every bound of the model's context checked before any work starts."""

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import NamedTuple

from ptpipeline.data.rows import Row
from ptpipeline.data.template import render
from ptpipeline.errors import ContextError, TaskFileError

Encode = Callable[[str, bool], list[int]]


class LabelTokens(NamedTuple):
    """A task's label names, and the token ids of each one's words."""

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]


class EncodedRow(NamedTuple):
    """One rendered text as token ids, the ids that are to follow it, and the label that they stand for."""

    id: str
    ids: list[int]
    target: tuple[int, ...]
    label: str


def label_tokens(task: str, labels: dict[str, str], encode: Encode) -> LabelTokens:
    """Token ids of every label's words; TaskFileError where one has none, or all of another's at its beginning."""
    ids = tuple(tuple(encode(words, False)) for words in labels.values())
    for name, tokens in zip(labels, ids, strict=True):
        if not tokens:
            raise TaskFileError(f"task {task}: labels.{name}: {labels[name]!r} has no tokens; give it words")
    if len(set(ids)) < len(ids):
        raise TaskFileError(f"task {task}: labels: two labels have the same tokens {sorted(ids)}; the model could not tell them apart")
    for (one, short), (two, long) in permutations(zip(labels, ids, strict=True), 2):
        if long[: len(short)] == short:
            raise TaskFileError(f"task {task}: labels.{two}: {labels[two]!r} begins with all tokens of {labels[one]!r} (labels.{one}), which is always the likelier; give it other words")
    return LabelTokens(tuple(labels), ids)


def max_input_tokens(context: int, virtual_tokens: int, labels: LabelTokens) -> int:
    """How many tokens a rendered text may have: the context less the prompt and the longest label.

    Raises ContextError where that leaves no room for a text.
    """
    longest = max(len(ids) for ids in labels.ids)
    room = context - virtual_tokens - longest
    if room < 1:
        raise ContextError(
            f"tune.num_virtual_tokens: {virtual_tokens} virtual tokens and a label of {longest} leave no room for text "
            f"in the base model's context of {context}; take a shorter prompt"
        )
    return room


def encode_text(template: str, text: str, limit: int, what: str, encode: Encode) -> list[int]:
    """Token ids of the rendered text; ContextError naming `what` where they are more than `limit`, or none."""
    ids = encode(render(template, text), True)
    if not ids:
        raise ContextError(f"{what}: the rendered text has no tokens")
    if len(ids) > limit:
        raise ContextError(f"{what}: the text has {len(ids)} tokens, at most {limit} fit beside the prompt and the label; shorten it")
    return ids


class TaskText(NamedTuple):
    """How one task turns rows into tokens."""

    task: str
    template: str
    labels: LabelTokens
    limit: int
    encode: Encode

    def rows(self, rows: Sequence[Row]) -> list[EncodedRow]:
        """All rows encoded; ContextError names the first that is too long."""
        target = dict(zip(self.labels.names, self.labels.ids, strict=True))
        return [
            EncodedRow(row.id, encode_text(self.template, row.text, self.limit, f"task {self.task}, row {row.id}", self.encode), target[row.label], row.label)
            for row in rows
        ]
