"""Texts and labels as token ids; every limit of the model's context is checked before any work starts."""

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import NamedTuple

from ptpipeline.data.rows import CheckedRow, Row
from ptpipeline.errors import ContextError, TaskFileError
from ptpipeline.records.prompts import ChatForm, Scoring, TooLong
from ptpipeline.task.template import Fields, Template

Encode = Callable[[str, bool], list[int]]

CONTENT_FREE = ("N/A", "[MASK]", "")  # the inputs of Zhao et al. 2021, section 4


class LabelTokens(NamedTuple):
    """A task's label names, the token ids of each label's words, and how the labels are ranked.

    `normalised`: by log-likelihood per token. `content_free`: the token ids of rendered texts without content, whose
    scores calibrate the labels (Zhao et al. 2021); empty if labels are not calibrated.
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
    """A generation task's answers: any text of up to `limit` tokens, ended by the token `end`."""

    limit: int
    end: int

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return self.limit

    def fits(self, rendered: str, target: str, encode: Encode) -> bool:
        """Tell whether the target has no more tokens than may be generated."""
        return len(encode(space_target(rendered, target), False)) <= self.limit

    def target(self, rendered: str, target: str, what: str, encode: Encode) -> tuple[int, ...]:
        """Return the token ids of a target behind its rendered text, then the end token, which the limit excludes.

        Raises ContextError naming `what` if the target has more than `limit` tokens.
        """
        ids = encode(space_target(rendered, target), False)
        if len(ids) > self.limit:
            raise ContextError(
                f"{what}: the target has {len(ids)} tokens, at most {self.limit} are generated; raise "
                "generate.max_new_tokens, or leave the row out"
            )
        return (*ids, self.end)


class EncodedRow(NamedTuple):
    """One rendered text as token ids, the ids that should follow it, and their label or target in words."""

    id: str
    ids: list[int]
    target: tuple[int, ...]
    label: str


def space_target(rendered: str, target: str) -> str:
    """Return a target as it follows its rendered text: behind one space, unless the text ends in white space.

    Byte-pair vocabularies hold words with the space in front of them.
    """
    return ("" if rendered[-1:].isspace() else " ") + target.strip()


def label_tokens(task: str, labels: dict[str, str], encode: Encode) -> LabelTokens:
    """Return the token ids of every label's words.

    Raises TaskFileError if a label has no tokens, or if a label's tokens begin with all tokens of another.
    """
    ids = tuple(tuple(encode(words, False)) for words in labels.values())
    for name, tokens in zip(labels, ids, strict=True):
        if not tokens:
            raise TaskFileError(f"task {task}: labels.{name}: {labels[name]!r} has no tokens; give it words")
    owners: dict[tuple[int, ...], str] = {}
    for name, tokens in zip(labels, ids, strict=True):
        if (other := owners.setdefault(tokens, name)) != name:
            raise TaskFileError(
                f"task {task}: labels.{name}: its words have the same tokens as those of {other!r}, so the model could "
                "not tell them apart: give it other words"
            )
    for (one, short), (two, long) in permutations(zip(labels, ids, strict=True), 2):
        if long[: len(short)] == short:
            raise TaskFileError(
                f"task {task}: labels.{two}: {labels[two]!r} begins with all tokens of {labels[one]!r} "
                f"(labels.{one}), which is then always likelier; give it other words"
            )
    return LabelTokens(tuple(labels), ids)


def apply_scoring(labels: LabelTokens, scoring: Scoring, template: Template, limit: int, encode: Encode) -> LabelTokens:
    """Return the labels with what `scoring` needs to rank them behind texts of this template.

    A content-free input stands in every field; one that has no tokens is left out. Raises ContextError if the template
    alone has more tokens than `limit`.
    """
    rendered = (template.render(dict.fromkeys(template.names, text), "scoring.calibrated") for text in CONTENT_FREE)
    free = [tuple(encode(text, True)) for text in rendered] if scoring.calibrated else []
    if free and (longest := max(map(len, free))) > limit:
        raise ContextError(
            f"scoring.calibrated: the template has {longest} tokens without a text, at most {limit} fit beside "
            "the prompt and the answer; shorten it"
        )
    return labels._replace(normalised=scoring.length_normalised, content_free=tuple(ids for ids in free if ids))


def max_input_tokens(context: int, virtual_tokens: int, answers: LabelTokens | FreeText) -> int:
    """Return how many tokens a rendered text may have: the context minus the prompt and the longest answer.

    Raises ContextError if that leaves no room for a text.
    """
    room = context - virtual_tokens - answers.longest
    if room < 1:
        answer = "a label" if isinstance(answers, LabelTokens) else "an answer"
        fix = "take a shorter prompt"
        if answers.longest > virtual_tokens:
            fix = (
                "give the labels shorter words" if isinstance(answers, LabelTokens) else "lower generate.max_new_tokens"
            )
        raise ContextError(
            f"tune.num_virtual_tokens: {virtual_tokens} virtual tokens and {answer} of {answers.longest} leave "
            f"no room for text in the base model's context of {context}; {fix}"
        )
    return room


def encode_text(
    template: Template, fields: Fields, limit: int, what: str, encode: Encode, too_long: TooLong = "block"
) -> list[int]:
    """Return the token ids of the rendered text, which is cut if it has more than `limit` and `too_long` says how.

    Raises ContextError naming `what` if there are none, or more than `limit`; DataError if a field is missing or
    unknown.
    """
    ids = encode(template.render(fields, what), True)
    if len(ids) > limit:
        ids = encode(template.render(cut_fields(template, fields, limit, encode, too_long), what), True)
    if not ids:
        raise ContextError(f"{what}: the rendered text has no tokens")
    if len(ids) > limit:
        raise ContextError(
            f"{what}: the text has {len(ids)} tokens, at most {limit} fit beside the prompt and the answer; shorten it"
        )
    return ids


def is_cut(too_long: TooLong) -> bool:
    """Tell whether texts that are too long are cut."""
    return too_long in _KEPT


def cut_fields(template: Template, fields: Fields, limit: int, encode: Encode, too_long: TooLong) -> Fields:
    """Return the fields without as many characters as are too many: of the longest field, then of the next. They stay
    if `too_long` does not say how they are cut.

    The template stays whole, so a template that is too long by itself still is.
    """
    if not is_cut(too_long):
        return fields

    def fits(cut: Fields) -> bool:
        return len(encode(template.render(cut, "a cut text"), True)) <= limit

    for name in sorted(fields, key=lambda name: (-len(fields[name]), name)):
        if fits(fields):
            break
        text, least, most = fields[name], 0, len(fields[name])  # `most` characters do not fit
        while most - least > 1:
            middle = (least + most) // 2
            if fits({**fields, name: _KEPT[too_long](text, middle)}):
                least = middle
            else:
                most = middle
        fields = {**fields, name: _KEPT[too_long](text, least)}
    return fields


_KEPT: dict[TooLong, Callable[[str, int], str]] = {  # what is kept of a text, in so many characters
    "truncate_end": lambda text, kept: text[:kept],
    "truncate_start": lambda text, kept: text[len(text) - kept :],
    "truncate_middle": lambda text, kept: text[: kept - kept // 2] + text[len(text) - kept // 2 :],
}


class TaskText(NamedTuple):
    """How one task turns rows into tokens; `labels` is empty if the task answers in `free` text.

    `chat` is what the base's chat template wrote, if the task's template is a chat.
    """

    task: str
    template: Template
    labels: LabelTokens
    limit: int
    encode: Encode
    free: FreeText | None = None
    too_long: TooLong = "block"
    chat: ChatForm | None = None

    def find_long(self, rows: Sequence[Row | CheckedRow]) -> list[int]:
        """Return the indexes of the rows whose text or target has more tokens than fit."""
        return [place for place, row in enumerate(rows) if not self._fits(row)]

    def is_target_long(self, row: Row | CheckedRow) -> bool:
        """Tell whether the row's target has more tokens than are generated; a target is never cut."""
        if self.free is None:
            return False
        return not self.free.fits(self._render(row, self._cut(row)), row.label, self.encode)

    def _fits(self, row: Row | CheckedRow) -> bool:
        return len(self.encode(self._render(row, row.fields), True)) <= self.limit and not self.is_target_long(row)

    def _cut(self, row: Row | CheckedRow) -> Fields:
        return cut_fields(self.template, row.fields, self.limit, self.encode, self.too_long)

    def _render(self, row: Row | CheckedRow, fields: Fields) -> str:
        return self.template.render(fields, f"a row of task {self.task}")

    def rows(self, rows: Sequence[Row]) -> list[EncodedRow]:
        """Return the rows as token ids; raises ContextError naming the first row whose text or target is too long."""
        return [self._row(row) for row in rows]

    def _row(self, row: Row) -> EncodedRow:
        what = f"task {self.task}, row {row.id}"
        fields = self._cut(row)
        ids = encode_text(self.template, fields, self.limit, what, self.encode)
        if self.free is None:
            return EncodedRow(row.id, ids, self.labels.ids[self.labels.names.index(row.label)], row.label)
        rendered = self.template.render(fields, what)
        return EncodedRow(row.id, ids, self.free.target(rendered, row.label, what, self.encode), row.label)


def check_template(text: TaskText) -> None:
    """Raise ContextError if the template without any text has as many tokens as a rendered text may have."""
    rendered = text.template.render(dict.fromkeys(text.template.names, ""), f"the template of task {text.task}")
    if (count := len(text.encode(rendered, True))) >= text.limit:
        raise ContextError(
            f"task {text.task}: template: {count} tokens without a text, and {text.limit} fit beside the prompt and "
            "the answer, so there is no room for a text; shorten the template or the prompt (tune.num_virtual_tokens)"
        )
