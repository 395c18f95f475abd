"""YAML files checked against a model: errors name the file, the line, the field, the value and what is allowed.

What stands there without quotes is kept as it is written: `01`, `true`, `1e3` and `2024-05-01` are names if the model
asks for a name, and numbers or truth values if it asks for these. So a key is always a text, and `1` is `'1'`.

The parser takes a tenth of a millisecond a value, and aliases repeat values: so values are counted, as often as aliases
name them, before the document is made.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.scalarstring import PlainScalarString
from ruamel.yaml.tag import Tag

from ptpipeline.errors import NotFound, TaskFileError
from ptpipeline.foreign import parsing, read_file, shorten

MAX_BYTES, MAX_LINES = 256 * 2**10, 5000
MAX_VALUES, MAX_DEPTH = 4000, 32

_NULLS = ("", "~", "null", "Null", "NULL")
_NUMBER = re.compile(
    r"[-+]?(0x[0-9a-fA-F_]+|0o[0-7_]+|[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9_]+([eE][-+]?[0-9]+)?"
    r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
)
_MAX_DIGITS = 400  # as in foreign: a longer one is no number of ours

# Names that pydantic gives to branches of unions.
_BRANCHES = (
    *("TextInit", "VersionInit", "FileInit", "a name", "Binned", "str"),
    *("one source", "a source per split", "a share", "some values", "a text", "a chat", "one path", "some paths"),
)

# What pydantic says in Python's words, in those of YAML.
_EXPECTED = {
    "dict_type": "expected names with values, as {name: value}",
    "list_type": "expected a list, as [one, two]",
    "tuple_type": "expected a list, as [one, two]",
    "string_type": "expected a text",
    "int_parsing": "expected a whole number, as 100",
    "float_parsing": "expected a number, as 0.1",
}

# What to do about what the parser says.
_SYNTAX = {
    "\\t": "indent by blanks, not by tabs",
    "duplicate key": "leave one of them out",
    "escape": "write a backslash in single quotes, or twice",
    "another document": "write each task in a file of its own, without `---` between them",
    "": "check the indent, the blank behind each colon, and the quotes around a text with braces or `: `",
}
_SHOWN = 200  # characters of a name
_LOOKS_PLAIN = re.compile("[\u00a0\u2000-\u200b\u202f\u3000\uff1a]")  # blanks and a colon of other keyboards

ModelT = TypeVar("ModelT", bound=BaseModel)


class _AsWritten(VersionedResolver):
    """Makes nothing of a scalar without quotes but the text that it is; `<<` still merges."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            return Tag(suffix="tag:yaml.org,2002:merge") if value == "<<" else self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


class _Plain(str):
    """A scalar without quotes, as it is written; an error shows a number or a truth value without quotes too."""

    __slots__ = ()

    def __repr__(self) -> str:
        bare = _NUMBER.fullmatch(self) or self.lower() in ("true", "false")
        return str(self) if bare else super().__repr__()


class Section(BaseModel):
    """A part of a task file: frozen, without unknown fields and infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def parse_yaml(path: Path) -> Any:
    """Return the mapping in a YAML file, with the line of every field. Raises TaskFileError if there is none."""
    body = read_file(path, MAX_BYTES, TaskFileError)
    if body.count(b"\n") > MAX_LINES:
        raise TaskFileError(f"{path}: {body.count(10)} lines, at most {MAX_LINES} allowed")
    with parsing(str(path), "it is not readable as YAML in UTF-8", TaskFileError):
        try:
            text = body.decode()
            _check_size(path, YAML(typ="rt").parse(text))
            yaml = YAML(typ="rt")
            yaml.Resolver, yaml.preserve_quotes = _AsWritten, True
            document = yaml.load(text)
        except MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            fix = _advise_syntax(str(error.problem), text.splitlines()[:line])
            raise TaskFileError(f"{path}:{line}: not valid YAML: {error.problem}; {fix}") from None
        except UnicodeDecodeError:
            raise TaskFileError(f"{path}: not readable as YAML in UTF-8: save the file as UTF-8") from None
        except (YAMLError, ValueError) as error:
            raise TaskFileError(f"{path}: not readable as YAML in UTF-8: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        kind = "nothing" if document is None else "a list" if isinstance(document, list) else "a text"
        raise TaskFileError(f"{path}:1: expected a mapping of fields, such as `name: {path.stem}`, found {kind}")
    return document


def _advise_syntax(problem: str, lines: Sequence[str]) -> str:
    """Return what to do about a file that is no YAML; lines: those up to the place of the problem."""
    number = next((number for number, line in enumerate(lines, 1) if _LOOKS_PLAIN.search(line.partition("#")[0])), None)
    if number is not None:
        return f"line {number} has a sign that looks like a blank or a colon and is none: write a plain one"
    return next(fix for words, fix in _SYNTAX.items() if words in problem)


def _check_size(path: Path, events: Iterable[Any]) -> None:
    """Raise TaskFileError if the document has too many values, each counted as often as an alias names it, or too many
    levels; or if a value contains itself.
    """
    values, sizes, within = 0, dict[str, int](), list[tuple[str | None, int]]()
    for event in events:
        if isinstance(event, AliasEvent):
            if any(anchor == event.anchor for anchor, _ in within):
                values = MAX_VALUES  # it contains itself
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, NodeEvent):
            values += 1
            if isinstance(event, CollectionStartEvent):
                within.append((event.anchor, values - 1))
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, CollectionEndEvent):
            anchor, before = within.pop()
            if anchor:
                sizes[anchor] = values - before
        if values > MAX_VALUES or len(within) > MAX_DEPTH:
            raise TaskFileError(
                f"{path}:{event.start_mark.line + 1}: more than {MAX_VALUES} values, counted as often as aliases (*) "
                f"repeat them, or more than {MAX_DEPTH} levels; write fewer"
            )


def validate(path: Path, document: Any, model: type[ModelT], inside: tuple[str, ...] = ()) -> ModelT:
    """Return the document, or its part `inside`, as a model.

    Raises TaskFileError, which names the line, the field, the value and what is allowed.
    """
    written = document
    for key in inside:
        written = written[key]
    value = _plain(written)
    while True:
        try:
            return model.model_validate(value)
        except ValidationError as error:
            found = error.errors()
            if sum(_read_otherwise(value, written, one) for one in found):
                continue
        first = _most_telling(found)
        loc = inside + _path(value, first["loc"])
        if unknown := _find_misspelt(first, found):
            other = inside + _path(value, unknown["loc"])
            raise TaskFileError(
                f"{path}:{line_of(document, other)}: {_sentence(first, loc, written, model)}; {shorten(other[-1])} is "
                "an unknown field: correct its name"
            )
        raise TaskFileError(f"{path}:{line_of(document, loc)}: {_sentence(first, loc, written, model)}")


def load_section(path: Path, name: str, model: type[ModelT], what: str, form: str) -> ModelT:
    """Return the section with that name in a file of named sections; messages call a section `what`, of that form."""
    if not path.exists():
        raise NotFound(f"{path}: no such file; create it and declare each {what} as `name: {form}`")
    document = parse_yaml(path)
    if name not in document:
        raise NotFound(f"no {what} {name!r} in {path}: there are {', '.join(map(str, document)) or 'none'}")
    return validate(path, document, model, (name,))


def _plain(value: Any) -> Any:
    """Return ruamel's annotated containers and scalars as plain ones; what is null in YAML is None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, TaggedScalar):
        return str(value.value)
    if _is_plain(value):
        return None if value in _NULLS else _Plain(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _is_plain(value: Any) -> bool:
    """Whether a value of the document is a scalar that stands there without quotes or tag."""
    return type(value) in (str, PlainScalarString)


def _read_otherwise(value: Any, written: Any, error: Any) -> bool:
    """Put what a scalar without quotes means otherwise into `value`, where the error of the model asks for that.

    That is the text of a null where a text is expected, and a number that pydantic itself does not read.
    """
    *above, last = _path(value, error["loc"]) or (None,)
    for part in above:
        if part not in _keys(written):  # a key that is a list or a mapping itself has another name in `value`
            return False
        value, written = value[part], written[part]
    if not isinstance(value, dict | list) or not isinstance(written, dict | list) or last not in _keys(written):
        return False
    text = written[last]
    if not _is_plain(text) or type(value[last]) not in (type(None), _Plain):
        return False
    if error["type"] == "string_type" and value[last] is None and text:
        value[last] = str(text)
        return True
    if error["type"] in ("int_parsing", "float_parsing") and (number := _number(text)) is not None:
        value[last] = number
        return True
    return False


def _number(text: str) -> float | None:
    """Return the number that a scalar means in YAML 1.2, None if it means none."""
    if len(text) > _MAX_DIGITS or not _NUMBER.fullmatch(text):
        return None
    bare = text.replace("_", "").lower()
    if "0x" in bare or "0o" in bare:
        return int(bare, 0)
    return float(bare.replace(".inf", "inf").replace(".nan", "nan"))


def _keys(value: Any) -> Any:
    return value if isinstance(value, dict) else range(len(value))


def _path(value: Any, loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the place of an error in the document: without the names of unions' branches, with a missing field's."""
    path: list[Any] = []
    for part in loc:
        if isinstance(value, dict | list) and part in _keys(value):
            value = value[part]
        elif _is_branch(part):
            continue
        path.append(part)
    return tuple(path)


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and (part in _BRANCHES or "[" in part)


def _most_telling(errors: list[Any]) -> Any:
    """Return the first error; if no branch of a union fits, the error inside the branch that got further."""
    first = errors[0]
    place = first["loc"][:-1]
    if not first["loc"] or not _is_branch(first["loc"][-1]):
        return first
    deeper = (
        error for error in errors if error["loc"][: len(place)] == place and len(error["loc"]) > len(first["loc"])
    )
    return next(deeper, first)


def _find_misspelt(first: Any, errors: list[Any]) -> Any:
    """Return the error of an unknown field beside the field that is missing, which may be the same one misspelt."""
    if first["type"] != "missing":
        return None
    same = (error for error in errors if error["loc"][:-1] == first["loc"][:-1])
    return next((error for error in same if error["type"] == "extra_forbidden"), None)


def line_of(document: Any, loc: tuple[int | str, ...]) -> int:
    """Return the line of a field, or of the nearest section above it."""
    line = 1
    node: Any = document
    for part in loc:
        try:
            line = (node.lc.key if isinstance(node, CommentedMap) else node.lc.item)(part)[0] + 1
        except (AttributeError, KeyError, IndexError, TypeError):
            break  # a plain scalar or a missing field: use the line of the section above
        node = node[part]
    return line


def _sentence(error: Any, loc: tuple[int | str, ...], value: Any, model: type[BaseModel]) -> str:
    field = ".".join(str(part) if len(str(part)) <= _SHOWN else f"{str(part)[:_SHOWN]}..." for part in loc)
    field = field or "the document"
    if error["type"] == "extra_forbidden":
        allowed = ", ".join(sorted(_fields_at(model, error["loc"])))
        return f"{field}: unknown field; allowed here: {allowed}"
    if error["type"] == "missing":
        return f"{field}: this field is required and missing"
    if error["type"] == "model_type":
        allowed = ", ".join(sorted(_fields_at(model, (*error["loc"], "any"))))
        message = f"expected a mapping of fields; allowed here: {allowed}"
    else:
        message = _EXPECTED.get(error["type"], error["msg"].removeprefix("Value error, "))
    if any(str(part).endswith("_env") for part in loc):
        return f"{field}: found a value that is not shown, as it may be a secret: {message}"
    if not loc:  # what is wrong between sections, which the message names
        return message
    shown = "nothing" if error["input"] is None else repr(error["input"])
    shown = re.sub(r"//.*@", "//...@", shown)  # without a login
    shown = re.sub(r"(?i)(pass\w*|secret\w*|token)(\s*=\s*)[^\s'\"]+", r"\1\2...", shown)
    return f"{field}: found {shown if len(shown) < 80 else shown[:77] + '...'}: {message}"


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the section that holds the last part of `loc`, which has the names of branches."""
    tagged: dict[int | str, type[BaseModel]] = {}
    for part in loc[:-1]:
        info = model.model_fields.get(str(part))
        if info is None:
            model = tagged.get(part, model)
            continue
        options = [info.annotation, *getattr(info.annotation, "__args__", ())]
        sections = {option: getattr(option, "__origin__", option) for option in options}
        nested = {option: kind for option, kind in sections.items() if _is_model(kind)}
        tagged = {mark.tag: kind for option, kind in nested.items() for mark in getattr(option, "__metadata__", ())}
        model = next(iter(nested.values()), model)
    return list(model.model_fields)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
