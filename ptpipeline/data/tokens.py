"""Texts and labels as token ids, with every bound of the model's context checked before any work starts."""

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import NamedTuple

from ptpipeline.data.rows import Row
from ptpipeline.data.template import render
from ptpipeline.errors import ContextError, TaskFileError
from ptpipeline.records import Scoring

Encode = Callable[[str, bool], list[int]]

CONTENT_FREE = ("N/A", "[MASK]", "")  # the inputs of Zhao et al. 2021, section 4


class LabelTokens(NamedTuple):
    """A task's label names, the token ids of each one's words, and how they are ranked.

    `normalised`: by log-likelihood per token. `content_free`: rendered texts without content as token ids; what a label
    gets behind these is taken off. None where labels are not calibrated.
    """

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    normalised: bool = False
    content_free: tuple[tuple[int, ...], ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest label."""
        return max(len(ids) for ids in self.ids)


class FreeText(NamedTuple):
    """A generation task's answers: any text of up to `limit` tokens, which the token `end` ends."""

    limit: int
    end: int

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return self.limit

    def target(self, rendered: str, target: str, what: str, encode: Encode) -> tuple[int, ...]:
        """Token ids of a target behind its rendered text, then the end token, which does not count towards the limit.

        One space joins the two unless the text ends in white space, since byte-pair vocabularies hold words with the
        space in front of them. ContextError naming `what` where the target has more tokens than will ever be generated.
        """
        ids = encode(("" if rendered[-1:].isspace() else " ") + target.strip(), False)
        if len(ids) > self.limit:
            raise ContextError(
                f"{what}: the target has {len(ids)} tokens, at most {self.limit} are generated; raise "
                "generate.max_new_tokens, or leave the row out"
            )
        return (*ids, self.end)


class EncodedRow(NamedTuple):
    """One rendered text as token ids, the ids that are to follow it, and the label or target that they stand for."""

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
        raise TaskFileError(
            f"task {task}: labels: two labels have the same tokens {sorted(ids)}; the model could not tell them apart"
        )
    for (one, short), (two, long) in permutations(zip(labels, ids, strict=True), 2):
        if long[: len(short)] == short:
            raise TaskFileError(
                f"task {task}: labels.{two}: {labels[two]!r} begins with all tokens of {labels[one]!r} "
                f"(labels.{one}), which is always the likelier; give it other words"
            )
    return LabelTokens(tuple(labels), ids)


def scored(labels: LabelTokens, scoring: Scoring, template: str, limit: int, encode: Encode) -> LabelTokens:
    """The labels as `scoring` ranks them behind texts of this template; an input without content that has no tokens is
    left out.

    Raises ContextError where the template itself has more tokens than `limit`.
    """
    free = [tuple(encode(render(template, text), True)) for text in CONTENT_FREE] if scoring.calibrated else []
    if free and (longest := max(map(len, free))) > limit:
        raise ContextError(
            f"scoring.calibrated: the template has {longest} tokens without a text, at most {limit} fit beside "
            "the prompt and the answer; shorten it"
        )
    return labels._replace(normalised=scoring.length_normalised, content_free=tuple(ids for ids in free if ids))


def max_input_tokens(context: int, virtual_tokens: int, answers: LabelTokens | FreeText) -> int:
    """How many tokens a rendered text may have: the context less the prompt and the longest label, or all new tokens.

    Raises ContextError where that leaves no room for a text.
    """
    room = context - virtual_tokens - answers.longest
    if room < 1:
        answer = "a label" if isinstance(answers, LabelTokens) else "an answer"
        raise ContextError(
            f"tune.num_virtual_tokens: {virtual_tokens} virtual tokens and {answer} of {answers.longest} leave "
            "no room for text "
            f"in the base model's context of {context}; take a shorter prompt"
        )
    return room


def encode_text(template: str, text: str, limit: int, what: str, encode: Encode) -> list[int]:
    """Token ids of the rendered text; ContextError naming `what` where they are more than `limit`, or none."""
    ids = encode(render(template, text), True)
    if not ids:
        raise ContextError(f"{what}: the rendered text has no tokens")
    if len(ids) > limit:
        raise ContextError(
            f"{what}: the text has {len(ids)} tokens, at most {limit} fit beside the prompt and the answer; shorten it"
        )
    return ids


class TaskText(NamedTuple):
    """How one task turns rows into tokens; `labels` is empty where it answers in `free` text."""

    task: str
    template: str
    labels: LabelTokens
    limit: int
    encode: Encode
    free: FreeText | None = None

    def rows(self, rows: Sequence[Row]) -> list[EncodedRow]:
        """All rows encoded; ContextError names the first whose text or target is too long."""
        return [self._row(row) for row in rows]

    def _row(self, row: Row) -> EncodedRow:
        what = f"task {self.task}, row {row.id}"
        ids = encode_text(self.template, row.text, self.limit, what, self.encode)
        if self.free is None:
            return EncodedRow(row.id, ids, self.labels.ids[self.labels.names.index(row.label)], row.label)
        return EncodedRow(
            row.id, ids, self.free.target(render(self.template, row.text), row.label, what, self.encode), row.label
        )
