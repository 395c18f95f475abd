"""The task file: one YAML document per task in `tasks/`, checked field by field.

An error names the file, the line, the field, what was found and what is allowed.
"""

import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from ptpipeline.errors import NotFound, TaskFileError
from ptpipeline.records import NAME_PATTERN, PRODUCTION, digest_of, is_name

BASES_FILE = "base_models.yaml"
_BRANCHES = ("TextInit", "Binned", "str", "literal['sampled_vocab']")  # names that pydantic gives to branches of unions

Policy = Literal["block", "warn", "off"]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of a task file: frozen, and strict about unknown fields and infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(Section):
    """Where the rows come from: a local `path`, or a `member` of a pinned package archive on the package index.

    `member` may reach into a nested archive: `folder/inner.tar.gz!/folder/file.txt`. `format: tsv` means tab-separated
    without quoting; `columns` names the columns of a file that has no header line.
    """

    path: str | None = None
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._!+-]+$")] | None = None
    member: str | None = None
    format: Literal["csv", "tsv", "jsonl", "parquet"]
    columns: list[str] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "Source":
        if (self.path is None) == (self.package is None):
            raise ValueError("give either `path` or `package` with `member` (s3:// and hub sources are not supported yet)")
        if (self.package is None) != (self.member is None):
            raise ValueError("`member` names the file inside `package`: give both or neither")
        if self.path is not None and "://" in self.path:
            raise ValueError("a local file was expected: s3://, http:// and hub sources are not supported yet")
        if self.columns is not None and self.format not in ("csv", "tsv"):
            raise ValueError(f"`columns` names the columns of a csv or tsv file without header, not of {self.format}")
        return self


class Binned(Section):
    """A label cut out of a number: label -> [low, high], inclusive, null for open; rows in no bin are left out."""

    column: str
    bins: dict[str, tuple[float | None, float | None]]

    @field_validator("bins")
    @classmethod
    def _low_before_high(cls, bins: dict[str, tuple[float | None, float | None]]) -> dict[str, tuple[float | None, float | None]]:
        for label, (low, high) in bins.items():
            if low is not None and high is not None and low > high:
                raise ValueError(f"no number lies in the bin of {label!r}: it is [low, high], and low is above high")
        return bins


class SplitSpec(Section):
    """Shares of the dev and test split; the rest trains. Rows go by hash of the text, or of the `group` column."""

    dev: Fraction = 0.05
    test: Fraction = 0.15
    group: str | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_rows(self) -> "SplitSpec":
        if self.dev + self.test >= 0.9:
            raise ValueError(f"dev + test = {self.dev + self.test:g} leaves under a tenth of the rows to train on")
        return self


class DataChecks(Section):
    """What each ingest check does when it finds rows: `block` the run, or `warn` and leave the rows out."""

    encoding: Policy = "warn"
    empty_text: Policy = "warn"
    unknown_label: Policy = "block"
    duplicate: Policy = "warn"
    conflicting_label: Policy = "warn"
    split_overlap: Policy = "block"
    rows_per_label: Policy = "block"
    min_rows_per_label: Annotated[int, Field(ge=1)] = 10


class Data(Section):
    """Where the rows are and which columns hold the text and the label."""

    source: Source
    text: str
    label: str | Binned
    split: SplitSpec = SplitSpec()
    checks: DataChecks = DataChecks()


class TextInit(Section):
    """Initialise from the embeddings of a text, tiled or cut to the prompt's length."""

    text: Annotated[str, Field(min_length=1)]


class Tune(Section):
    """The recipe. The learning rate warms up linearly, then decays linearly to `final_fraction` of itself."""

    method: Literal["prompt"] = "prompt"
    num_virtual_tokens: Annotated[int, Field(ge=1, le=1000)] = 16
    init: Literal["sampled_vocab"] | TextInit = "sampled_vocab"
    steps: Annotated[int, Field(ge=1)] = 300
    batch_size: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    eval_every: Annotated[int, Field(ge=1)] = 50
    patience: Annotated[int, Field(ge=1)] = 4
    seed: int = 0
    store_dtype: Literal["float16", "bfloat16", "float32"] = "float16"


class ChampionPolicy(Section):
    """The challenger may be worse than the champion by less than `margin`, shown at one-sided `confidence`."""

    margin: Annotated[float, Field(ge=0, lt=1)] = 0.01
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95


class Gate(Section):
    """What a candidate has to show on the test split before it may go to production."""

    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    minimum: Annotated[float, Field(ge=0, le=1)]
    beat_zero_shot: bool = True
    champion: ChampionPolicy = ChampionPolicy()
    max_label_share: Annotated[float, Field(gt=0, le=1)] = 0.98
    max_bytes: Annotated[int, Field(ge=1)] = 65536


class Schedule(Section):
    """When the nightly flow takes this task up: a five-field cron line in a named time zone."""

    cron: Annotated[str, Field(pattern=r"^\S+( \S+){4}$")]
    timezone: str = "UTC"

    @field_validator("cron")
    @classmethod
    def _has_a_next_time(cls, value: str) -> str:
        try:
            CronSim(value, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(f"{error}; expected minute, hour, day of month, month, day of week, such as `0 2 * * *`") from None
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("not a time zone of the tz database, such as `Asia/Seoul` or `UTC`") from None
        return value


def checked_template(template: str) -> str:
    """`template` where its only field is a plain `{text}`, once; ValueError otherwise."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; write a literal brace as {{{{ or }}}}") from None
    fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    if fields != [("text", "", None)]:
        raise ValueError("the template substitutes the field {text} exactly once, without attributes, indexes or formats")
    return template


class Task(Section):
    """One declared problem: data, template, labels, recipe, gate, schedule."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    base_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    data: Data
    template: Annotated[str, AfterValidator(checked_template)]
    labels: Annotated[dict[str, str], Field(min_length=2, max_length=100)]
    tune: Tune = Tune()
    gate: Gate
    promote: Literal["auto", "manual"] = "manual"
    schedule: Schedule | None = None

    @field_validator("labels")
    @classmethod
    def _distinct_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        if any(not words for words in labels.values()):
            raise ValueError("each label needs the words that the model is to answer with, such as ' positive'")
        if len(set(labels.values())) < len(labels):
            raise ValueError("two labels have the same words: the model could not tell them apart")
        return labels

    @model_validator(mode="after")
    def _bins_are_labels(self) -> "Task":
        if isinstance(self.data.label, Binned) and set(self.data.label.bins) != set(self.labels):
            raise ValueError(f"data.label.bins names {sorted(self.data.label.bins)}, labels names {sorted(self.labels)}: they have to agree")
        return self

    def recipe_digest(self) -> str:
        """Identity of all that training depends on besides rows, base model and engine."""
        return digest_of({"tune": self.tune.model_dump(mode="json"), "template": self.template, "labels": self.labels})

    def policy_digest(self) -> str:
        """Identity of the gate's policy."""
        return digest_of(self.gate.model_dump(mode="json"))


# ---------------------------------------------------------------- base models


class BaseModelSource(Section):
    """Where a base model comes from: a folder, a GGUF `member` of a pinned wheel, or a hub id at a revision."""

    path: str | None = None
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._!+-]+$")] | None = None
    member: str | None = None
    hub: str | None = None
    revision: str | None = None
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "BaseModelSource":
        if sum(place is not None for place in (self.path, self.package, self.hub)) != 1:
            raise ValueError("give exactly one of `path`, `package` (with `member`), `hub` (with `revision`)")
        if (self.package is None) != (self.member is None):
            raise ValueError("`member` names the GGUF file inside `package`: give both or neither")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("`revision` pins the commit of the `hub` model: give both or neither")
        return self


# ---------------------------------------------------------------- loading


def load_task(path: Path) -> Task:
    """One checked task file; TaskFileError names file, line, field, found and allowed."""
    document = _parsed(path)
    task: Task = _checked(path, document, Task)
    if task.name != path.stem:
        raise TaskFileError(f"{path}:{_line(document, ('name',))}: name: found {task.name!r}, expected the file's own name {path.stem!r}")
    return task


def find_task(folder: Path, name: str) -> Task:
    """The task of that name; NotFound lists the names there are."""
    if not is_name(name):
        raise NotFound(f"task {name!r}: a task name has lower-case letters, digits and dashes, such as movie-sentiment")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in task_files(folder))) or "none"
        raise NotFound(f"no task {name!r} in {folder}: there are {known}")
    return load_task(path)


def task_files(folder: Path) -> list[Path]:
    """The task files of a folder, by name."""
    return sorted(path for path in folder.glob("*.yaml") if path.name != BASES_FILE)


def find_base_model(folder: Path, name: str) -> BaseModelSource:
    """The base model of that name in `base_models.yaml` beside the tasks; NotFound lists the names there are."""
    path = folder / BASES_FILE
    if not path.is_file():
        raise NotFound(f"{path}: no such file; it declares the base models, one `name: {{path|package|hub: ...}}` each")
    document = _parsed(path)
    if name not in document:
        raise NotFound(f"no base model {name!r} in {path}: there are {', '.join(map(str, document)) or 'none'}")
    source: BaseModelSource = _checked(path, document, BaseModelSource, (name,))
    return source


def _parsed(path: Path) -> Any:
    try:
        document = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise TaskFileError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date that no calendar has
        raise TaskFileError(f"{path}: not readable as YAML in UTF-8: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise TaskFileError(f"{path}:1: expected a mapping of fields, found {type(document).__name__}")
    return document


def _checked(path: Path, document: Any, model: type[Section], inside: tuple[str, ...] = ()) -> Any:
    value = document
    for key in inside:
        value = value[key]
    try:
        return model.model_validate(_plain(value))
    except ValidationError as error:
        first = _most_telling(error.errors())
        loc = inside + tuple(part for part in first["loc"] if part not in _BRANCHES)
        raise TaskFileError(f"{path}:{_line(document, loc)}: {_sentence(first, loc, value, model)}") from None


def _plain(value: Any) -> Any:
    """ruamel's annotated containers and scalars as plain ones."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _most_telling(errors: list[Any]) -> Any:
    """The first error; where no branch of a union fits, the one inside the branch that got further."""
    first = errors[0]
    place = first["loc"][:-1]
    if not first["loc"] or first["loc"][-1] not in _BRANCHES:
        return first
    deeper = (error for error in errors if error["loc"][: len(place)] == place and len(error["loc"]) > len(first["loc"]))
    return next(deeper, first)


def _line(document: Any, loc: tuple[int | str, ...]) -> int:
    line = 1
    node: Any = document
    for part in loc:
        try:
            line = (node.lc.key if isinstance(node, CommentedMap) else node.lc.item)(part)[0] + 1
        except (AttributeError, KeyError, IndexError, TypeError):
            break  # a plain scalar, or a field that is missing: the line of the section above
        node = node[part]
    return line


def _sentence(error: Any, loc: tuple[int | str, ...], value: Any, model: type[Section]) -> str:
    field = ".".join(str(part) for part in loc) or "the document"
    if error["type"] == "extra_forbidden":
        allowed = ", ".join(sorted(_fields_at(model, loc)))
        return f"{field}: unknown field; allowed here: {allowed}"
    if error["type"] == "missing":
        return f"{field}: this field is required and missing"
    message = error["msg"].removeprefix("Value error, ")
    shown = repr(error["input"])
    return f"{field}: found {shown if len(shown) < 80 else shown[:77] + '...'}: {message}"


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section that holds the last part of `loc`."""
    for part in loc[:-1]:
        info = model.model_fields.get(str(part))
        if info is None:
            continue
        options = [info.annotation, *getattr(info.annotation, "__args__", ())]
        nested = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if nested:
            model = nested[0]
    return list(model.model_fields)


__all__ = ["PRODUCTION", "BaseModelSource", "Data", "Gate", "Task", "Tune", "find_base_model", "find_task", "load_task", "task_files"]
