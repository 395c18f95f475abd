"""A template: literal text and named fields, `{premise}\\nClaim: {hypothesis}\\nAnswer:`, and what a row makes of it.

Fields are plain names: no attributes, indexes or formats. A literal brace is doubled.
"""

import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from ptpipeline.errors import DataError
from ptpipeline.records.prompts import PromptManifest

Fields = Mapping[str, str]  # the text of each field, by its name

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class ChatText(str):
    """A rendered chat; `controls` are the spans that the base's chat template wrote.

    In these alone, names of control tokens are control tokens. A copy of the text is plain text.
    """

    controls: tuple[slice, ...] = ()


class Part(NamedTuple):
    """A piece of a template: literal text, or a field by its name. `control`: the base's chat template wrote it."""

    text: str
    field: bool = False
    control: bool = False


class Template(NamedTuple):
    """The pieces of a template, in order."""

    parts: tuple[Part, ...]

    @property
    def names(self) -> list[str]:
        """The fields, sorted: so that a template with the same fields in another order asks for the same rows."""
        return sorted(part.text for part in self.parts if part.field)

    def render(self, fields: Fields, what: str) -> str:
        """Return the text with the fields filled in, taken literally: braces in them stay.

        Raises DataError naming `what` if a field is missing, unknown or no text.
        """
        self._check(fields, what)
        texts = [fields[part.text] if part.field else part.text for part in self.parts]
        if not any(part.control for part in self.parts):
            return "".join(texts)
        rendered, spans, start = ChatText("".join(texts)), list[slice](), 0
        for part, text in zip(self.parts, texts, strict=True):
            if part.control:
                spans.append(slice(start, start + len(text)))
            start += len(text)
        rendered.controls = tuple(spans)
        return rendered

    def name_fields(self, text: str | Fields, what: str) -> Fields:
        """Return a text by field: one that is given by field itself, a string as that of the only field.

        Raises DataError naming `what` if it is one string and the template has several fields, or if it is no text.
        """
        if isinstance(text, Mapping):
            return text
        if not isinstance(text, str):
            raise DataError(f"{what} is {type(text).__name__}; expected text")
        names = self.names
        if len(names) > 1:
            form = json.dumps(dict.fromkeys(names, "..."))
            raise DataError(
                f"{what} is one text, but the template has {list_fields(names)}; give each by its name: {form}"
            )
        return {names[0]: text}

    def _check(self, fields: Fields, what: str) -> None:
        names = self.names
        if fields.keys() != set(names):
            missing, unknown = [name for name in names if name not in fields], sorted(set(fields) - set(names))
            fault = f"the field {missing[0]!r} is missing" if missing else f"the field {unknown[0]!r} is unknown"
            raise DataError(f"{what}: {fault}; the template has {list_fields(names)}")
        for name in names:
            if not isinstance(fields[name], str):
                raise DataError(f"{what}: the field {name!r} is {type(fields[name]).__name__}; expected text")


@lru_cache(maxsize=256)
def parse_template(template: str) -> Template:
    """Return the template's pieces.

    Raises ValueError if there is no field, one stands twice, or one is more than a plain name.
    """
    return join_templates([Template(_parse(template))])


def parse_message(content: str) -> Template:
    """Return the pieces of a message's template, which may have no field. Raises what `parse_template` raises."""
    return Template(_parse(content))


def _check_names(names: list[str]) -> None:
    if not names:
        raise ValueError("write at least one field, such as {text}, where the text of a row stands")
    if len(set(names)) < len(names):
        raise ValueError(f"the field {{{_first_repeated(names)}}} stands twice: write each field once")


def _parse(template: str) -> tuple[Part, ...]:
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; write a literal brace as {{{{ or }}}}") from None
    parts = list[Part]()
    for literal, name, spec, conversion in pieces:
        if literal:
            parts.append(Part(literal))
        if name is not None:
            if spec or conversion or not _NAME.fullmatch(name):
                raise ValueError(
                    f"write a field as a plain name in braces, such as {{text}}, not {_show(name, spec, conversion)}; "
                    "write a literal brace as {{ or }}"
                )
            parts.append(Part(name, field=True))
    return tuple(parts)


def _show(name: str, spec: str | None, conversion: str | None) -> str:
    shown = "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
    return shown if len(shown) <= 40 else shown[:37] + "..."


def _first_repeated(names: list[str]) -> str:
    return next(name for place, name in enumerate(names) if name in names[:place])


def join_templates(parts: Iterable[Template]) -> Template:
    """Return several templates as one.

    Raises ValueError if there is no field, or one stands twice.
    """
    joined = Template(tuple(part for template in parts for part in template.parts))
    _check_names([part.text for part in joined.parts if part.field])
    return joined


def parse_chat(parts: Sequence[str]) -> Template:
    """Return the template of a chat: what the base's chat template wrote, and a message's template, in turn."""
    pieces = [Template(_parse(part)) if index % 2 else _mark_written(part) for index, part in enumerate(parts)]
    return join_templates(pieces)


def show_chat(parts: Sequence[str]) -> str:
    """Return the same as one template that a person reads."""
    doubled = str.maketrans({"{": "{{", "}": "}}"})
    return "".join(part if index % 2 else part.translate(doubled) for index, part in enumerate(parts))


def _mark_written(text: str) -> Template:
    return Template((Part(text, control=True),) if text else ())


def check_template(template: str) -> str:
    """Return `template` unchanged. Raises what `parse_template` raises."""
    parse_template(template)
    return template


def read_template(manifest: PromptManifest) -> Template:
    """Return the template of a stored prompt. Raises DataError if it is none."""
    try:
        return parse_chat(manifest.chat.parts) if manifest.chat else parse_template(manifest.template)
    except ValueError as error:
        raise DataError(f"template {manifest.template!r}: {error}") from None


def list_fields(names: Iterable[str]) -> str:
    """Return the fields in words: `the fields premise and hypothesis`."""
    ordered = list(names)
    if len(ordered) == 1:
        return f"the field {ordered[0]}"
    return f"the fields {', '.join(ordered[:-1])} and {ordered[-1]}"
