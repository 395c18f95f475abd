"""The task file: one YAML document per task in `tasks/`, checked field by field.

An error names the file, the line, the field, the value and what is allowed.
"""

import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from ptpipeline.errors import NotFound, TaskFileError
from ptpipeline.records import LABEL_METRICS, NAME_PATTERN, TEXT_METRICS, Generation, Scoring, digest_of, is_name
from ptpipeline.task.document import Section, line_of, load_section, parse_yaml, validate
from ptpipeline.task.policy import Gate, Policy
from ptpipeline.task.recipe import SHARED_FILE, SharedPrompt, Tune

BASES_FILE = "base_models.yaml"
GATE_VERSION = 1  # raise by one whenever the same evidence would lead to another verdict

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Source(Section):
    """Where the rows come from: a local file (`path`), or a `member` of a pinned package archive on the package index.

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
            raise ValueError(
                "give either `path` or `package` with `member` (s3:// and hub sources are not supported yet)"
            )
        if (self.package is None) != (self.member is None):
            raise ValueError("`member` names the file inside `package`: give both or neither")
        if self.path is not None and "://" in self.path:
            raise ValueError("a local file was expected: s3://, http:// and hub sources are not supported yet")
        if self.columns is not None and self.format not in ("csv", "tsv"):
            raise ValueError(f"`columns` names the columns of a csv or tsv file without header, not of {self.format}")
        return self


class Binned(Section):
    """Labels cut out of a numeric column: label -> [low, high], inclusive, null for open. Rows in no bin are
    left out.
    """

    column: str
    bins: dict[str, tuple[float | None, float | None]]

    @field_validator("bins")
    @classmethod
    def _low_before_high(
        cls, bins: dict[str, tuple[float | None, float | None]]
    ) -> dict[str, tuple[float | None, float | None]]:
        for label, (low, high) in bins.items():
            if low is not None and high is not None and low > high:
                raise ValueError(
                    f"the bin of {label!r} is empty: low {low:g} is above high {high:g}; write [low, high]"
                )
        return bins


class SplitSpec(Section):
    """Shares of the dev and test split; the rest trains. Rows go by hash of the text, or of the `group` column.

    `reserve` is a further share, taken from the training rows. It replaces the test split after `gate.champion.looks`.
    """

    dev: Fraction = 0.05
    test: Fraction = 0.15
    reserve: Annotated[float, Field(ge=0, lt=1)] = 0.0
    group: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _leaves_rows(self) -> "SplitSpec":
        held = {"dev": self.dev, "test": self.test} | ({"reserve": self.reserve} if self.reserve else {})
        if sum(held.values()) >= 0.9:
            raise ValueError(
                f"{' + '.join(held)} = {sum(held.values()):g} leaves less than a tenth of the rows for "
                "training; lower them"
            )
        return self


class DataChecks(Section):
    """What each ingest check does if it finds rows: `block` the run, or `warn` and leave the rows out.

    `near_duplicate: warn` keeps the rows and puts them into one split; if a `group` column decides the split, it leaves
    out training rows that are near duplicates of dev or test rows. `unknown_label` and `rows_per_label` do not apply to
    generation tasks, which have no labels.
    """

    encoding: Policy = "warn"
    empty_text: Policy = "warn"
    unknown_label: Policy = "block"
    duplicate: Policy = "warn"
    conflicting_label: Policy = "warn"
    split_overlap: Policy = "block"
    near_duplicate: Policy = "warn"
    rows_per_label: Policy = "block"
    min_rows_per_label: Annotated[int, Field(ge=1)] = 10


class Data(Section):
    """Where the rows are, and which columns hold the text and the label (or the target text of a generation task).

    `slices` names columns whose values divide the rows into parts; the gate judges each part by itself.
    """

    source: Source
    text: str
    label: str | Binned | None = None
    target: str | None = None
    slices: list[str] = Field(default_factory=list, max_length=8)
    split: SplitSpec = SplitSpec()
    checks: DataChecks = DataChecks()

    @field_validator("slices")
    @classmethod
    def _distinct_columns(cls, slices: list[str]) -> list[str]:
        if len(set(slices)) < len(slices):
            raise ValueError("a slice column is listed twice: list each column once")
        return slices

    @model_validator(mode="after")
    def _one_answer(self) -> "Data":
        if (self.label is None) == (self.target is None):
            raise ValueError(
                "name one column of answers: `label` for a task with `labels`, or `target` for a task with `generate`"
            )
        return self


class HardPrompt(Section):
    """The hard-prompt baseline: the base model reads an instruction and `examples` training rows before each text."""

    instruction: Annotated[str, Field(max_length=4000)] = ""
    examples: Annotated[int, Field(ge=0, le=16)] = 4

    @property
    def empty(self) -> bool:
        """True if there is no instruction and no example, which equals zero-shot."""
        return self.examples == 0 and not self.instruction.strip()


class Schedule(Section):
    """When the nightly flow runs this task: a five-field cron line in a named time zone."""

    cron: Annotated[str, Field(pattern=r"^\S+( \S+){4}$")]
    timezone: str = "UTC"

    @field_validator("cron")
    @classmethod
    def _has_a_next_time(cls, value: str) -> str:
        try:
            CronSim(value, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(
                f"{error}; expected minute, hour, day of month, month, day of week, such as `0 2 * * *`"
            ) from None
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("not a time zone of the tz database, such as `Asia/Seoul` or `UTC`") from None
        return value


def check_template(template: str) -> str:
    """Return `template` unchanged. Raises ValueError unless its only field is a plain `{text}`, exactly once."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; write a literal brace as {{{{ or }}}}") from None
    fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    if fields != [("text", "", None)]:
        raise ValueError("write the field {text} exactly once, without attributes, indexes or formats")
    return template


class Task(Section):
    """One declared problem: data, template, labels (or `generate`, for answers in free text), recipe, gate, schedule.

    `texts_in_reports` allows HTML reports, in the store and in MLflow, to quote the rows that are answered wrong.
    """

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    base_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    data: Data
    template: Annotated[str, AfterValidator(check_template)]
    generate: Generation | None = None
    labels: dict[str, str] = Field(default_factory=dict, max_length=100, validate_default=True)
    scoring: Scoring = Scoring()
    hard_prompt: HardPrompt = HardPrompt()
    tune: Tune = Tune()
    gate: Gate
    promote: Literal["auto", "manual"] = "manual"
    texts_in_reports: bool = False
    schedule: Schedule | None = None

    @field_validator("generate")
    @classmethod
    def _generates_targets(cls, generate: Generation | None, info: ValidationInfo) -> Generation | None:
        if generate is not None and "data" in info.data and info.data["data"].target is None:
            raise ValueError("a task that generates text names its answer column as `data.target`, not `data.label`")
        return generate

    @field_validator("labels")
    @classmethod
    def _one_kind(cls, labels: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        generates = info.data.get("generate") is not None
        if labels and generates:
            raise ValueError(
                "a task answers either with `labels` or with free text (`generate`): remove one of the two"
            )
        if labels and "data" in info.data and info.data["data"].label is None:
            raise ValueError(
                "`data.target` is the column of a task with `generate`; a task with labels names `data.label`"
            )
        if len(labels) < 2 and not generates and "generate" in info.data:
            raise ValueError(
                "give at least two labels, or `generate: {max_new_tokens: 64}` and `data.target` for answers "
                "in free text"
            )
        return labels

    @field_validator("labels")
    @classmethod
    def _distinct_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        if any(not words for words in labels.values()):
            raise ValueError("each label needs the words that the model is to answer with, such as ' positive'")
        if len(set(labels.values())) < len(labels):
            raise ValueError(
                "two labels have the same words, so the model could not tell them apart: give each its own words"
            )
        return labels

    @field_validator("scoring")
    @classmethod
    def _labels_are_scored(cls, scoring: Scoring, info: ValidationInfo) -> Scoring:
        if scoring != Scoring() and info.data.get("generate") is not None:
            raise ValueError(
                "`scoring` says how labels are ranked, and a task with `generate` has no labels: remove it"
            )
        return scoring

    @field_validator("tune")
    @classmethod
    def _one_prompt_generates(cls, tune: Tune, info: ValidationInfo) -> Tune:
        if tune.method == "ensemble" and info.data.get("generate") is not None:
            raise ValueError(
                "an ensemble averages or votes over labels, which free text does not have: choose another method"
            )
        return tune

    @field_validator("gate")
    @classmethod
    def _metric_of_the_kind(cls, gate: Gate, info: ValidationInfo) -> Gate:
        fitting = TEXT_METRICS if info.data.get("generate") is not None else LABEL_METRICS
        if gate.metric not in fitting and "labels" in info.data:
            kind = "answers in free text" if fitting is TEXT_METRICS else "answers with labels"
            raise ValueError(f"gate.metric is {gate.metric}, but the task {kind}: take one of {', '.join(fitting)}")
        return gate

    @model_validator(mode="after")
    def _bins_are_labels(self) -> "Task":
        if isinstance(self.data.label, Binned) and set(self.data.label.bins) != set(self.labels):
            raise ValueError(
                f"data.label.bins names {sorted(self.data.label.bins)}, labels names {sorted(self.labels)}: "
                "name the same labels in both"
            )
        return self

    def recipe_digest(self) -> str:
        """Return the digest of all that training depends on besides rows, base model and engine.

        Settings at their default are left out, so that a new setting changes no recipe. If a default changes,
        ENGINE_VERSION is raised.
        """
        parts = {
            "tune": self.tune.model_dump(mode="json", exclude_defaults=True),
            "template": self.template,
            "labels": self.labels,
        }
        answering = {"generate": self.generate.to_json()} if self.generate else {}
        return digest_of(parts | answering | ({"scoring": self.scoring.to_json()} if self.scoring != Scoring() else {}))

    def policy_digest(self) -> str:
        """Return the digest of the gate's policy, the labels and their scoring, the hard prompt, and GATE_VERSION."""
        parts = {
            "gate": self.gate.model_dump(mode="json"),
            "max_bytes": self.byte_limit(),
            "labels": self.labels,
            "scoring": self.scoring.to_json(),
            "hard_prompt": self.hard_prompt.model_dump(mode="json"),
        }
        return digest_of(parts | {"version": GATE_VERSION})

    def byte_limit(self) -> int:
        """Return how many bytes of tensors a version may have: the gate's limit, or the default of its method."""
        if self.gate.checks.bytes.max_bytes is not None:
            return self.gate.checks.bytes.max_bytes
        if self.tune.method == "prefix":
            return 32 * 2**20
        return 64 * 2**10 * (self.tune.ensemble.members if self.tune.ensemble else 1)


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
    """Return the task in a file. Raises TaskFileError, which names file, line, field, value and what is allowed."""
    document = parse_yaml(path)
    task = validate(path, document, Task)
    if task.name != path.stem:
        raise TaskFileError(
            f"{path}:{line_of(document, ('name',))}: name: found {task.name!r}, expected the file's own name "
            f"{path.stem!r}"
        )
    return task


def find_task(folder: Path, name: str) -> Task:
    """Return the task with that name. Raises NotFound, which lists the existing names, or TaskFileError."""
    if not is_name(name):
        raise NotFound(f"task {name!r}: a task name has lower-case letters, digits and dashes, such as movie-sentiment")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in task_files(folder))) or "none"
        raise NotFound(f"no task {name!r} in {folder}: there are {known}")
    return load_task(path)


def task_files(folder: Path) -> list[Path]:
    """Return the task files of a folder, sorted by name. Raises NotFound if there is no such folder."""
    if not folder.is_dir():
        raise NotFound(
            f"PTP_TASKS: no folder {folder}; start in the project's folder, or name the folder of the task files"
        )
    return sorted(path for path in folder.glob("*.yaml") if path.name not in (BASES_FILE, SHARED_FILE))


def load_tasks(folder: Path) -> list[Task]:
    """Return all tasks of a folder, after checking the shared prompts that they start from.

    Raises TaskFileError or NotFound for the first file that is wrong.
    """
    tasks = [load_task(path) for path in task_files(folder)]
    for name in sorted({task.tune.shared for task in tasks if task.tune.shared}):
        load_sources(folder, name)
    return tasks


def sound_tasks(folder: Path) -> tuple[list[Task], dict[str, str]]:
    """Return all tasks with valid files, and one sentence per invalid file: a typo in one file stops no other task."""
    sound, broken = [], {}
    for path in task_files(folder):
        try:
            sound.append(load_task(path))
        except TaskFileError as error:
            broken[path.stem] = str(error)
    return sound, broken


def find_base_model(folder: Path, name: str) -> BaseModelSource:
    """Return a base model of `base_models.yaml` beside the tasks. Raises NotFound, which lists the existing names."""
    return load_section(folder / BASES_FILE, name, BaseModelSource, ("base model", "{path|package|hub: ...}"))


def find_shared_prompt(folder: Path, name: str) -> SharedPrompt:
    """Return a shared prompt of `shared_prompts.yaml` beside the tasks. Raises NotFound, which lists the names."""
    path = folder / SHARED_FILE
    shared = load_section(path, name, SharedPrompt, ("shared prompt", "{base_model, sources, tune}"))
    if (folder / f"{name}.yaml").is_file():
        raise TaskFileError(
            f"{path}: {name!r} is also the name of a task, and both would share one numbering of versions: rename one"
        )
    return shared


def load_sources(folder: Path, name: str) -> tuple[SharedPrompt, list[Task]]:
    """Return a shared prompt and its source tasks.

    Raises NotFound or TaskFileError if one is missing, invalid, or for another base model.
    """
    shared = find_shared_prompt(folder, name)
    tasks = [find_task(folder, source) for source in shared.sources]
    for task in tasks:
        if task.base_model != shared.base_model:
            raise TaskFileError(
                f"{folder / SHARED_FILE}: {name}: its source {task.name} is for base model {task.base_model}, "
                f"not {shared.base_model}; use sources of one base model"
            )
    return shared, tasks
