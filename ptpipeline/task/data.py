"""Where a task's rows come from, which columns hold what, and how they are split and checked."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ptpipeline.records.base import DIGEST_PATTERN
from ptpipeline.task.document import Section
from ptpipeline.task.policy import Policy

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Source(Section):
    """Where the rows come from: a local file (`path`), or a `member` of a pinned package archive on the package index.

    `member` may reach into a nested archive: `folder/inner.tar.gz!/folder/file.txt`. `format: tsv` means tab-separated
    without quoting; `delimiter` is the character between the fields of a csv file, a comma by default; `columns` names
    the columns of a file that has no header line. `sha256` pins the archive: another one under the same name and
    version is refused.
    """

    path: str | None = None
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._!+-]+$")] | None = None
    member: str | None = None
    sha256: Annotated[str, Field(pattern=DIGEST_PATTERN)] | None = None
    format: Literal["csv", "tsv", "jsonl", "parquet"]
    columns: list[str] | None = None
    delimiter: Annotated[str, Field(pattern=r'^[^"\r\n]$')] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "Source":
        if (self.path is None) == (self.package is None):
            raise ValueError(
                "give either `path` or `package` with `member` (s3:// and hub sources are not supported yet)"
            )
        if (self.package is None) != (self.member is None):
            raise ValueError("`member` names the file inside `package`: give both or neither")
        if self.sha256 is not None and self.package is None:
            raise ValueError("`sha256` is that of the archive of a `package`: leave it out")
        if self.path is not None and "://" in self.path:
            raise ValueError("a local file was expected: s3://, http:// and hub sources are not supported yet")
        if self.columns is not None and self.format not in ("csv", "tsv"):
            raise ValueError(f"`columns` names the columns of a csv or tsv file without header, not of {self.format}")
        if self.delimiter is not None and self.format != "csv":
            raise ValueError(f"`delimiter` separates the fields of a csv file, not of {self.format}: leave it out")
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

    quotes: Policy = "block"
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
