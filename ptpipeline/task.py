"""The task file: one YAML document per task in `tasks/`, checked field by field.

An error names the file, the line, the field, what was found and what is allowed.
"""

import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from ptpipeline.document import checked, line_of, parsed
from ptpipeline.errors import NotFound, TaskFileError
from ptpipeline.records import NAME_PATTERN, digest_of, is_name

BASES_FILE = "base_models.yaml"

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
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

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
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
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
    document = parsed(path)
    task = checked(path, document, Task)
    if task.name != path.stem:
        raise TaskFileError(f"{path}:{line_of(document, ('name',))}: name: found {task.name!r}, expected the file's own name {path.stem!r}")
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
    """The task files of a folder, by name; NotFound where there is no such folder."""
    if not folder.is_dir():
        raise NotFound(f"PTP_TASKS: no folder {folder}; start in the project's folder, or name the folder of the task files")
    return sorted(path for path in folder.glob("*.yaml") if path.name != BASES_FILE)


def find_base_model(folder: Path, name: str) -> BaseModelSource:
    """The base model of that name in `base_models.yaml` beside the tasks; NotFound lists the names there are."""
    path = folder / BASES_FILE
    if not path.is_file():
        raise NotFound(f"{path}: no such file; it declares the base models, one `name: {{path|package|hub: ...}}` each")
    document = parsed(path)
    if name not in document:
        raise NotFound(f"no base model {name!r} in {path}: there are {', '.join(map(str, document)) or 'none'}")
    return checked(path, document, BaseModelSource, (name,))
