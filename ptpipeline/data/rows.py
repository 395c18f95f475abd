"""Rows as columns, from which one row is built whenever it is asked for: a million rows as objects take gigabytes."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, overload

from ptpipeline.data.near import normalise as normalise
from ptpipeline.data.sources import SourceRows
from ptpipeline.records.data import DataCheck, Split
from ptpipeline.task.data import SplitSpec
from ptpipeline.task.template import Fields

BETWEEN = "\x1f"  # no normalised text holds it, so words do not pass from one field to the next

Item = TypeVar("Item", covariant=True)


class Row(NamedTuple):
    """One example; `id` is the first 16 hex digits of the sha256 of its normalised text, with -2, -3... for repeats.

    `fields` has the text of each field of the template: most tasks have `text` alone.
    `label` is the name of a label, or the target text of a generation task; `slices` are its values of `data.slices`.
    """

    id: str
    fields: Fields
    label: str
    slices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that a person wrote: the fields in the order of their names, one a line."""
        return join_fields(self.fields)


class CheckedRow(NamedTuple):
    """One labelled row: its number in the source from 1, and the normalised text that identifies it."""

    number: int
    fields: Fields
    normal: str
    label: str
    split: Split
    slices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As `Row.text`."""
        return join_fields(self.fields)


class Built(Sequence[Item]):
    """Items of which each is built when it is asked for, from one of `indexes`."""

    def __init__(self, build: Callable[[int], Item], indexes: Sequence[int]) -> None:
        self.build, self.indexes = build, indexes

    def __len__(self) -> int:
        return len(self.indexes)

    def __iter__(self) -> Iterator[Item]:
        return map(self.build, self.indexes)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> "Built[Item]": ...
    def __getitem__(self, place: int | slice) -> "Item | Built[Item]":
        if isinstance(place, slice):
            return Built(self.build, self.indexes[place])
        return self.build(self.indexes[place])

    def without(self, places: Collection[int]) -> "Built[Item]":
        """Return all items but those at some places."""
        return Built(self.build, [index for place, index in enumerate(self.indexes) if place not in places])


class CheckedRows(NamedTuple):
    """The rows that passed, in source order, and the record of every check."""

    rows: Built[CheckedRow]
    checks: list[DataCheck]


@dataclass(frozen=True, slots=True)
class Columns:
    """All rows of a source, equally long columns in its order; a row is known by its index.

    `fields` has the text of each field, empty for a missing one, and `normals` what identifies the row. `labels` are
    the cells of the source until the labels' names, or targets, take their place. `splits` are those that the source
    states, `train` if it states none, until training rows are cut.
    """

    fields: dict[str, list[str]]
    normals: list[str]
    labels: list[str | None]
    splits: list[Split]
    groups: list[str] | None
    slices: list[tuple[str, ...]]

    @classmethod
    def of(cls, source: SourceRows) -> "Columns":
        """Return the columns of a source."""
        count = len(source.labels)
        fields = {name: [text or "" for text in source.fields[name]] for name in sorted(source.fields)}
        return cls(
            fields,
            [BETWEEN.join(map(normalise, texts)) for texts in zip(*fields.values(), strict=True)],
            list(source.labels),
            [split or "train" for split in source.splits or [None] * count],
            None if source.groups is None else [group or "" for group in source.groups],
            list(source.slices) or [()] * count,
        )

    def write(self, index: int) -> Iterator[str]:
        """Yield every text of a row but its label: fields, slices and group."""
        yield from (texts[index] for texts in self.fields.values())
        yield from self.slices[index]
        if self.groups is not None:
            yield self.groups[index]

    def replace(self, index: int, change: Callable[[str], str]) -> None:
        """Change every text of a row."""
        for texts in self.fields.values():
            texts[index] = change(texts[index])
        self.normals[index] = normalise_fields({name: texts[index] for name, texts in self.fields.items()})
        self.labels[index] = change(self.labels[index] or "")
        self.slices[index] = tuple(map(change, self.slices[index]))
        if self.groups is not None:
            self.groups[index] = change(self.groups[index])

    def build(self, index: int) -> CheckedRow:
        """Return one row, which has a label."""
        fields, label = {name: texts[index] for name, texts in self.fields.items()}, self.labels[index] or ""
        return CheckedRow(index + 1, fields, self.normals[index], label, self.splits[index], self.slices[index])


def join_fields(fields: Fields) -> str:
    """Return the fields in the order of their names, one a line."""
    return "\n".join(fields[name] for name in sorted(fields))


def normalise_fields(fields: Fields) -> str:
    """Return what identifies a row: each field normalised, in the order of their names."""
    return BETWEEN.join(normalise(fields[name]) for name in sorted(fields))


def split_of(key: str, spec: SplitSpec) -> Split:
    """Return the split of all rows with this normalised text or group value: by hash alone, never by label.

    A reserve is cut out of what would be train, so no other row moves.
    """
    share = int(hashlib.sha256(f"{spec.seed}:{key}".encode(errors="surrogatepass")).hexdigest()[:13], 16) / 16**13
    test, dev = spec.share("test"), spec.share("dev")
    if share < test:
        return "test"
    if share < test + dev:
        return "dev"
    return "reserve" if share < test + dev + spec.reserve else "train"


def identify_rows(rows: Sequence[CheckedRow]) -> Built[Row]:
    """Return the rows with their ids, in order."""
    seen, ids = Counter[str](), list[str]()
    for row in rows:
        identity = hashlib.sha256(row.normal.encode()).hexdigest()[:16]
        seen[identity] += 1
        ids.append(f"{identity}-{seen[identity]}" if seen[identity] > 1 else identity)

    def build(place: int) -> Row:
        row = rows[place]
        return Row(ids[place], row.fields, row.label, row.slices)

    return Built(build, range(len(ids)))
