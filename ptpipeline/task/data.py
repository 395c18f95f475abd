"""Where a task's rows come from, which columns hold what, and how they are split and checked."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from ptpipeline.records.data import Split
from ptpipeline.records.prompts import TooLong
from ptpipeline.task.document import Section
from ptpipeline.task.policy import Policy
from ptpipeline.task.source import AnySource, SplitSources
from ptpipeline.task.source import Source as Source

FieldName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
Fraction = Annotated[float, Field(gt=0, lt=1)]


def _write_number(value: Any) -> Any:
    """Return an integer as its digits: `train: [0]` names the cell 0, of a file or of a table."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Values = Annotated[list[Annotated[str, BeforeValidator(_write_number)]], Field(min_length=1)]
ShareOrValues = Annotated[
    Annotated[Fraction, Tag("a share")] | Annotated[Values, Tag("some values")],
    Discriminator(lambda value: "some values" if isinstance(value, list) else "a share"),
]


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
    If the source states the splits in a `column`, then `train`, `dev` and `test` list its values; `dev` may stay a
    share, which is cut from the training rows. `on_overlap` says what happens to training rows that stand, equally or
    nearly, in another given split.
    """

    column: str | None = None
    train: Values | None = None
    dev: ShareOrValues = 0.05
    test: ShareOrValues = 0.15
    reserve: Annotated[float, Field(ge=0, lt=1)] = 0.0
    group: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    on_overlap: Literal["keep", "drop_train", "block"] = "drop_train"

    def share(self, split: Literal["dev", "test"]) -> float:
        """Return the share of rows that go to the split by hash; 0 if its rows are listed by value."""
        share: float | list[str] = getattr(self, split)
        return 0.0 if isinstance(share, list) else share

    def values(self) -> dict[str, Split]:
        """Return the split that each listed value of the column stands for."""
        lists: dict[Split, Any] = {"train": self.train, "dev": self.dev, "test": self.test}
        return {value: split for split, listed in lists.items() if isinstance(listed, list) for value in listed}

    @field_validator("train", mode="before")
    @classmethod
    def _the_rest_trains(cls, train: Any) -> Any:
        try:
            share = float(train) if isinstance(train, int | float | str) else None
        except ValueError:
            share = None
        if share is not None:
            raise ValueError("the rows that are not in another split train: leave `train` out")
        return train

    @model_validator(mode="after")
    def _values_of_a_column(self) -> "SplitSpec":
        lists = [listed for listed in (self.train, self.dev, self.test) if isinstance(listed, list)]
        if self.column is None and lists:
            raise ValueError("a list names values of the column that states the splits: name it as `column`")
        if self.column is None:
            return self
        if self.train is None or not isinstance(self.test, list):
            raise ValueError(
                f"`column: {self.column}` states the splits: list its values, as `train: [train]`, `test: [test]`, and "
                "`dev: [validation]` if it has dev rows"
            )
        if len(self.values()) < sum(map(len, lists)):
            raise ValueError("a value of the split column is listed twice: list each value once")
        return self

    @model_validator(mode="after")
    def _leaves_rows(self) -> "SplitSpec":
        held = {"dev": self.share("dev"), "test": self.share("test"), "reserve": self.reserve}
        held = {name: share for name, share in held.items() if share}
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
    generation tasks, which have no labels. Two rows are near duplicates if their texts are; if `near_fields` names
    fields, also if one of these fields nearly repeats that of the other row, such as the same premise.
    """

    quotes: Policy = "block"
    encoding: Policy = "warn"
    empty_text: Policy = "warn"
    unknown_label: Policy = "block"
    duplicate: Policy = "warn"
    conflicting_label: Policy = "warn"
    split_overlap: Policy = "block"
    near_duplicate: Policy = "warn"
    near_fields: tuple[FieldName, ...] = ()
    rows_per_label: Policy = "block"
    min_rows_per_label: Annotated[int, Field(ge=1)] = 10

    @model_validator(mode="after")
    def _near_fields_are_compared(self) -> "DataChecks":
        if self.near_fields and self.near_duplicate == "off":
            raise ValueError("`near_fields` says what `near_duplicate` compares, but it is off: remove one of the two")
        return self


class Data(Section):
    """Where the rows are, and which columns hold the text and the label (or the target text of a generation task).

    `text` is the column of the template's `{text}`; `fields` names the columns of other fields, if they have other
    names than the fields. `slices` names columns whose values divide the rows into parts; the gate judges each part by
    itself. `source` may be a source per split. `too_long` says what happens to rows of more tokens than fit beside the
    prompt: they end the run, are left out, or lose the end, the start or the middle of their longest field.
    """

    source: AnySource
    text: str | None = None
    fields: dict[FieldName, str] = Field(default_factory=dict, max_length=16)
    label: str | Binned | None = None
    target: str | None = None
    slices: list[str] = Field(default_factory=list, max_length=8)
    too_long: TooLong = "block"
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

    @model_validator(mode="after")
    def _one_column_of_the_text(self) -> "Data":
        if self.text is not None and "text" in self.fields:
            raise ValueError("`text` and `fields.text` both name the column of {text}: remove one of the two")
        return self

    @property
    def columns(self) -> dict[str, str]:
        """The column of each field that has one named."""
        return self.fields | ({} if self.text is None else {"text": self.text})

    @property
    def sources(self) -> Mapping[Split | None, Source]:
        """Each source, by the split that it gives; None is a source of all splits."""
        if not isinstance(self.source, SplitSources):
            return {None: self.source}
        given: dict[Split | None, Source | None] = {
            "train": self.source.train,
            "dev": self.source.dev,
            "test": self.source.test,
        }
        return {split: source for split, source in given.items() if source is not None}

    @property
    def given(self) -> frozenset[Split]:
        """The splits whose rows the source states; empty if all splits are cut by hash."""
        return frozenset(self.split.values().values()) | {split for split in self.sources if split is not None}

    @property
    def cut(self) -> SplitSpec:
        """What is cut by hash: shares of all rows, or of the training rows that the source states."""
        return self.split.model_copy(update=dict.fromkeys(self.given - {"train"}, 0.0))

    @model_validator(mode="after")
    def _splits_are_said_once(self) -> "Data":
        split, stated = self.split, self.split.model_fields_set
        if isinstance(self.source, SplitSources):
            if split.column is not None:
                raise ValueError(
                    "the splits are given twice: by `source`, and by `split.column`; remove one of the two"
                )
            twice = sorted(stated & (self.given - {"train"}))
            if twice:
                raise ValueError(
                    f"`split.{twice[0]}` is a share of rows, but `source.{twice[0]}` gives them: remove it"
                )
        if not self.given:
            if "on_overlap" in stated:
                raise ValueError(
                    "`split.on_overlap` is about splits that the source gives, by `split.column` or a source per "
                    "split; here they are cut by hash: remove it"
                )
            return self
        if split.group is not None:
            raise ValueError("`split.group` keeps groups in one split, but the source gives the splits: remove it")
        for name in ("split_overlap", "near_duplicate"):
            if name in self.checks.model_fields_set and getattr(self.checks, name) != "off":
                raise ValueError(
                    f"`split.on_overlap` decides what `checks.{name}` does between splits that the source gives: "
                    f"remove `checks.{name}`, or set it to off"
                )
        return self
