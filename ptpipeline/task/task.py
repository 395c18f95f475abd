"""The task file: one YAML document per task in `tasks/`, checked field by field.

An error names the file, the line, the field, the value and what is allowed.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from cronsim import CronSim, CronSimError
from pydantic import Field, ValidationInfo, field_validator, model_validator

from ptpipeline.records.base import NAME_PATTERN, digest_of
from ptpipeline.records.prompts import Generation, Scoring
from ptpipeline.records.reports import LABEL_METRICS, TEXT_METRICS
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.task.chat import Chat, TextOrChat, read_fields
from ptpipeline.task.data import Binned, Data
from ptpipeline.task.document import Section
from ptpipeline.task.labels import Labels
from ptpipeline.task.policy import Gate
from ptpipeline.task.promoters import Promoters
from ptpipeline.task.recipe import Tune
from ptpipeline.task.template import list_fields

GATE_VERSION = 1  # raise by one whenever the same evidence would lead to another verdict

_zones = functools.cache(available_timezones)  # it opens every file of the tz database: half of what a task file takes


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

    cron: str
    timezone: str = "UTC"

    @field_validator("cron")
    @classmethod
    def _has_a_next_time(cls, value: str) -> str:
        fields = "expected minute, hour, day of month, month, day of week, such as `0 2 * * *`"
        if not re.fullmatch(r"\S+( \S+){4}", value):
            raise ValueError(fields)
        try:
            CronSim(value, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(f"{error}; {fields}") from None
        *_, day, _month, weekday = value.upper().split()
        if "LW" in day or "L/" in day or re.search(r"\dL|[A-Z]L\b", weekday):
            raise ValueError(
                "Prefect, which starts the runs, has no last weekday (`LW`), no step behind `L`, and no last Friday "
                "(`5L`): write `L` for the last day of the month, or `5#4` for the fourth Friday"
            )
        if "#" in weekday and not all("#" in item for item in weekday.split(",")):
            raise ValueError(
                "Prefect, which starts the runs, takes no list of days of the week that has both plain ones and ones "
                "with `#`: write two tasks, or days of one kind"
            )
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in _zones():
            raise ValueError("not a time zone of the tz database, such as `Asia/Seoul` or `UTC`")
        return value


class Task(Section):
    """One declared problem: data, template, labels (or `generate`, for answers in free text), recipe, gate, schedule.

    `watch` starts a run whenever the source has new rows, beside the schedule. `approvals` is how many people have to
    approve a candidate before production names it, none of whom started its run; a request for it lasts
    `approval_days`. `aliases` is an order: each takes only what the one before names. Hours without a verdict after
    `max_age` raise an alarm. `texts_in_reports` allows HTML reports, in the store and in MLflow, to quote the rows that
    are answered wrong.
    """

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    base_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    data: Data
    template: TextOrChat
    generate: Generation | None = None
    labels: Labels = Field(default_factory=dict, validate_default=True)
    scoring: Scoring = Scoring()
    hard_prompt: HardPrompt = HardPrompt()
    tune: Tune = Tune()
    gate: Gate
    promote: Literal["auto", "manual"] = "manual"
    approvals: Annotated[int, Field(ge=1, le=2)] | None = None
    approval_days: Annotated[int, Field(ge=1, le=365)] = 7
    aliases: tuple[Annotated[str, Field(pattern=NAME_PATTERN)], ...] = ()
    max_age: Annotated[float, Field(gt=0, le=24 * 366)] | None = None
    promoters: Promoters | None = None
    texts_in_reports: bool = False
    schedule: Schedule | None = None
    watch: bool = False

    @property
    def columns(self) -> dict[str, str]:
        """The column of each field of the template, by the field's name; the names are sorted."""
        named = self.data.columns
        return {name: named.get(name, name) for name in read_fields(self.template).names}

    @property
    def chat(self) -> Chat | None:
        """The messages, if the template is a chat."""
        return self.template if isinstance(self.template, Chat) else None

    @property
    def template_json(self) -> Any:
        """The template as JSON values."""
        return self.template if isinstance(self.template, str) else self.template.model_dump(mode="json")

    @field_validator("template")
    @classmethod
    def _fields_that_data_names(cls, template: str | Chat, info: ValidationInfo) -> str | Chat:
        names = read_fields(template).names
        for name in info.data["data"].columns if "data" in info.data else ():
            if name not in names:
                where = "data.text" if name == "text" else f"data.fields.{name}"
                raise ValueError(
                    f"{where} names a column, but the template has no {{{name}}}: it has {list_fields(names)}; write "
                    f"{{{name}}} where its text stands, or remove {where}"
                )
        if "data" in info.data:
            _check_answers(info.data["data"], names)
        _check_fields(
            "data.checks.near_fields", info.data["data"].checks.near_fields if "data" in info.data else (), names
        )
        return template

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

    @field_validator("promoters")
    @classmethod
    def _a_person_promotes(cls, promoters: Promoters | None, info: ValidationInfo) -> Promoters | None:
        if promoters and promoters.required_for == "promotion" and info.data.get("promote") == "auto":
            raise ValueError(
                "`required_for: promotion` asks for a person's signature, and `promote: auto` lets the nightly run "
                "promote: set `promote: manual`"
            )
        return promoters

    @field_validator("approvals", "aliases")
    @classmethod
    def _people_decide(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("promote") == "auto":
            raise ValueError(
                f"`promote: auto` lets the nightly run promote, which {info.field_name} does not allow: set `promote: "
                "manual`"
            )
        return value

    @field_validator("aliases")
    @classmethod
    def _production_is_last(cls, aliases: tuple[str, ...]) -> tuple[str, ...]:
        if aliases and (aliases[-1] != PRODUCTION or len(set(aliases)) < max(2, len(aliases))):
            raise ValueError(
                "expected different aliases, the last of which is `production`, such as `[staging, production]`"
            )
        return aliases

    @field_validator("gate")
    @classmethod
    def _fits_the_task(cls, gate: Gate, info: ValidationInfo) -> Gate:
        for name, rule in gate.checks.field_rules.items() if "template" in info.data else ():
            _check_fields(f"gate.checks.{name}.fields", rule.fields, read_fields(info.data["template"]).names)
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
            "template": self.template_json,
            "labels": self.labels,
        }
        answering: dict[str, Any] = {"generate": self.generate.to_json()} if self.generate else {}
        if self.data.too_long.startswith("truncate"):
            answering["too_long"] = self.data.too_long
        return digest_of(parts | answering | ({"scoring": self.scoring.to_json()} if self.scoring != Scoring() else {}))

    def policy_digest(self) -> str:
        """Return the digest of all that decides a verdict: policy, labels, scoring, hard prompt, and GATE_VERSION."""
        parts = {
            "gate": self.gate.to_json(),
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


def _check_answers(data: Data, names: Sequence[str]) -> None:
    """Raise ValueError if a field of the template is the column of the answers."""
    answers = data.label.column if isinstance(data.label, Binned) else data.label or data.target
    for name in names:
        if data.columns.get(name, name) == answers:
            where = "data.text" if name == "text" and data.text is not None else f"{{{name}}}"
            raise ValueError(
                f"{where} names {answers!r}, which is also the column of the answers, so the model would read "
                "what it is to answer: name another column"
            )


def _check_fields(where: str, named: Iterable[str], names: Sequence[str]) -> None:
    """Raise ValueError if `where` names a field that the template does not have."""
    for name in named:
        if name not in names:
            raise ValueError(f"{where} names {name!r}, but the template has {list_fields(names)}: name one of them")
