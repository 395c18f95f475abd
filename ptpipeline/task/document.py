"""YAML files checked against a model: errors name the file, the line, the field, the value and what is allowed.

The parser takes a tenth of a millisecond a value, and aliases repeat values: so values are counted, as often as aliases
name them, before the document is made.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from ptpipeline.errors import NotFound, TaskFileError
from ptpipeline.foreign import parsing, read_file

MAX_BYTES, MAX_LINES = 256 * 2**10, 5000
MAX_VALUES, MAX_DEPTH = 4000, 32

# Names that pydantic gives to branches of unions.
_BRANCHES = (
    *("TextInit", "VersionInit", "FileInit", "a name", "Binned", "str"),
    *("one source", "a source per split", "a share", "some values", "one path", "some paths"),
)

ModelT = TypeVar("ModelT", bound=BaseModel)


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
            document = YAML(typ="rt").load(text)
        except MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise TaskFileError(f"{path}:{line}: not valid YAML: {error.problem}") from None
        except (YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an impossible date
            raise TaskFileError(f"{path}: not readable as YAML in UTF-8: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise TaskFileError(f"{path}:1: expected a mapping of fields, found {type(document).__name__}")
    return document


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
    value = document
    for key in inside:
        value = value[key]
    try:
        return model.model_validate(_plain(value))
    except ValidationError as error:
        first = _most_telling(error.errors())
        loc = inside + tuple(part for part in first["loc"] if not _is_branch(part))
        raise TaskFileError(f"{path}:{line_of(document, loc)}: {_sentence(first, loc, value, model)}") from None


def load_section(path: Path, name: str, model: type[ModelT], wording: tuple[str, str]) -> ModelT:
    """Return the section with that name in a file of named sections; `wording` is what a section is called, and its
    form.
    """
    what, form = wording
    if not path.is_file():
        raise NotFound(f"{path}: no such file; create it and declare each {what} as `name: {form}`")
    document = parse_yaml(path)
    if name not in document:
        raise NotFound(f"no {what} {name!r} in {path}: there are {', '.join(map(str, document)) or 'none'}")
    return validate(path, document, model, (name,))


def _plain(value: Any) -> Any:
    """Return ruamel's annotated containers and scalars as plain ones."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


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
    field = ".".join(str(part) for part in loc) or "the document"
    if error["type"] == "extra_forbidden":
        allowed = ", ".join(sorted(_fields_at(model, error["loc"])))
        return f"{field}: unknown field; allowed here: {allowed}"
    if error["type"] == "missing":
        return f"{field}: this field is required and missing"
    message = error["msg"].removeprefix("Value error, ")
    if any(str(part).endswith("_env") for part in loc):
        return (
            f"{field}: found a value that is not shown, as it may be a secret: expected the name of an environment "
            "variable in capital letters, such as PARTNER_KEY; set the variable to the secret"
        )
    shown = repr(error["input"])
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
