"""A task's rows: snapshots, their splits, and what the checks counted."""

from typing import ClassVar, Literal

from ptpipeline.errors import NotFound
from ptpipeline.records.base import Count, Grown, Key, Record

Split = Literal["train", "dev", "test", "reserve"]


SPLITS: tuple[Split, ...] = ("train", "dev", "test")  # those that every snapshot has


class DataCheck(Record):
    """One ingest check: how many rows it found, and whether it warned or blocked."""

    name: str
    policy: Literal["block", "warn", "off"]
    count: Count
    outcome: Literal["ok", "warned", "blocked", "off"]
    detail: str = ""


class SplitInfo(Grown):
    """One split of a snapshot; `digest` covers row identities, texts and labels (or targets) in file order.

    `labels` counts the rows of each label; it is empty for a generation task, whose targets are private texts. `slices`
    is the digest of the rows' slice values; it is not part of `digest`, so that a new slice column trains nothing.
    """

    LATER: ClassVar = frozenset({"slices"})

    rows: Count
    labels: dict[str, Count]
    digest: Key
    slices: str | None = None


class Snapshot(Grown):
    """One immutable copy of a task's data, at `snapshots/<task>/<digest>/{train,dev,test}.parquet` + manifest.json.

    `source_key` identifies the source cheaply (package pin, or path with size and content hash, together with the
    task's data settings): an unchanged key means that no new snapshot is needed. `reserve` describes
    `reserve.parquet`, if the task holds rows back; `slices` names the slice columns, `fields` those of the template.
    """

    LATER: ClassVar = frozenset({"reserve", "slices", "fields"})

    schema_version: Literal[1] = 1
    task: str
    digest: Key
    source: str
    source_key: Key
    train: SplitInfo
    dev: SplitInfo
    test: SplitInfo
    checks: list[DataCheck]
    reserve: SplitInfo | None = None
    slices: list[str] = []
    fields: list[str] = ["text"]

    def split(self, name: Split) -> SplitInfo:
        """Return the split with that name. Raises NotFound if the snapshot has no reserve."""
        split: SplitInfo | None = getattr(self, name)
        if split is None:
            raise NotFound(
                f"snapshot {self.digest[:12]} of task {self.task} has no {name} split; set data.split.{name} "
                "to a share of the rows and ingest again"
            )
        return split

    def splits(self) -> dict[Split, SplitInfo]:
        """Return all its splits by name."""
        splits = {name: self.split(name) for name in SPLITS}
        return splits | ({"reserve": self.reserve} if self.reserve else {})
