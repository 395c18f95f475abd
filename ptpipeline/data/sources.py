"""A task's rows from wherever they are: the columns that it names, the split that a source states, and a cheap key."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ptpipeline.data import database, hub, local, s3
from ptpipeline.data.joined import count_rows, join
from ptpipeline.data.table import JoinedPlaces, Part, Places, Wanted, show_name
from ptpipeline.errors import DataError, PtpError, ServiceUnavailable
from ptpipeline.records.base import digest_of, read_clock
from ptpipeline.records.data import Split
from ptpipeline.task.data import Binned, Data, Source
from ptpipeline.task.document import Section
from ptpipeline.task.task import Task

# Part of every source key: raise it by one if the same source would give other rows.
INGEST_VERSION = 3

MAX_SLICE_VALUES = 50
_TEMPORARY, _DAY = (".unfold-", ".s3-", ".hub-"), 86400  # seconds
_MAX_TOLD, _MAX_VALUE = 8, 40  # values of a split column that a message lists, and the characters of one

# Settings that were added after keys were kept: they are part of a key if they are set, so that old keys stay.
_LATER = {
    "split": {"column", "train", "on_overlap"},
    "source": {"delimiter", "glob", "s3", "sql", "hub", "revision", "config", "split"},
    "checks": {"quotes", "near_fields"},
}


class Place(NamedTuple):
    """How rows are found and read at one kind of place, and what its key covers, in words."""

    identify: Callable[[Source, Path], Any]
    read: Callable[[Source, Sequence[Wanted], Path], Iterator[Part]]
    covers: str


_FILES = Place(local.identify, local.read, "size and sha256 of each file")
_PLACES = {
    "path": _FILES,
    "glob": _FILES,
    "package": Place(local.identify, local.read, "sha256 of the package's archive"),
    "s3": Place(s3.identify, s3.read, "key, ETag and size of each object"),
    "hub": Place(hub.identify, hub.read, "the commit"),
    "sql": Place(database.identify, database.read, "the answer of version_query, else a digest of the rows"),
}


class SourceRows(NamedTuple):
    """The columns of a source that a task names, equally long, in file order; `groups` is None without a group column.

    `fields` has the cells of each field of the template, by its name. `labels` holds the targets of a generation task;
    `slices` has each row's values of the slice columns, and is empty if the task names none. `places` says where each
    row stands; `label_kinds` and `label_codes` are those of the column of labels, and `misquoted` is that of the table
    (data/table.py). `splits` is the split that the source states for each row, None if the task lists none for its
    value; `unlisted` counts these values.
    """

    source: str
    fields: dict[str, list[str | None]]
    labels: list[str | None]
    groups: list[str | None] | None
    slices: Sequence[tuple[str, ...]] = ()
    places: Places | JoinedPlaces = Places()
    label_kinds: tuple[str, ...] = ("text",)
    label_codes: Mapping[str, str] = MappingProxyType({})
    misquoted: frozenset[int] = frozenset()
    splits: list[Split | None] | None = None
    unlisted: Mapping[str, int] = MappingProxyType({})


class OpenSource:
    """A task's source: asked for its key, then read; one that has no key but its rows is read once for both.

    tokenizer: the identity of what counts tokens, which decides the rows of a task with `too_long: drop`.
    """

    def __init__(self, task: Task, home: Path, tokenizer: str | None = None) -> None:
        self._task, self._home, self._tokenizer = task, home, tokenizer
        self._kept: dict[Split | None, Part] = {}  # the rows that were read for the key

    @property
    def key(self) -> str:
        """What `source_key` returns; raises the same."""
        return _write_key(self._task, self._contents, self._tokenizer)

    @cached_property
    def _contents(self) -> dict[Split | None, Any]:
        return {split: self._identify(split, source) for split, source in self._task.data.sources.items()}

    def _identify(self, split: Split | None, source: Source) -> Any:
        if source.sql is None or source.sql.version_query is not None:
            return _identify(split, source, self._home)
        with _naming(split):
            content, self._kept[split] = database.identify_and_read(source, _name_columns(self._task))
        return content

    def read(self) -> SourceRows:
        """Return the rows that the key stands for; what was read for it is given away, and read again the next time.

        Raises what `read_rows` raises, and ServiceUnavailable if the source changed since it was asked for its key.
        """
        contents, kept, self._kept = self._contents, self._kept, {}
        rows = read_rows(self._task, self._home, kept)
        for split, source in self._task.data.sources.items():
            if split not in kept and _identify(split, source, self._home) != contents[split]:
                raise ServiceUnavailable(f"{rows.source}: the source changed while it was read; run again")
        return rows


def source_key(task: Task, home: Path, tokenizer: str | None = None) -> str:
    """Return a cheap identity of what ingest would read: if the key is unchanged, no new snapshot is needed.

    Covers the data settings, the labels' names, and of the content what `describe_key` says. tokenizer: as of
    `OpenSource`. Raises what the place's `identify` raises: DataError if what it names is not there, SettingsError if
    its login is refused, and ServiceUnavailable if its server does not answer.
    """
    contents = {split: _identify(split, source, home) for split, source in task.data.sources.items()}
    return _write_key(task, contents, tokenizer)


def _identify(split: Split | None, source: Source, home: Path) -> Any:
    with _naming(split):
        return _place_of(source).identify(source, home)


@contextmanager
def _naming(split: Split | None) -> Iterator[None]:
    """Raise an error about the source of a split with that source's settings, as `data.source.test.format`."""
    try:
        yield
    except PtpError as error:
        if split is not None:
            said = str(error).replace("data.source.", f"data.source.{split}.")
            error.args = (_tell_split(split, said),)
        raise


def _tell_split(split: Split, name: str) -> str:
    """Two queries may go to one database, so that its name tells none of them."""
    return f"data.source.{split}: {name}" if name.startswith("sql:") else name


def _write_key(task: Task, contents: Mapping[Split | None, Any], tokenizer: str | None) -> str:
    settings = _dump_settings(task.data, task.columns)
    if task.data.too_long == "drop":  # then what is too long decides which rows there are
        settings["too_long"] = _describe_limit(task) | {"tokenizer": tokenizer}
    parts = {"ingest": INGEST_VERSION, "data": settings, "labels": sorted(task.labels)}
    return digest_of(parts | {"content": contents.get(None, contents)})


def describe_key(task: Task) -> str:
    """Return what the source key of a task covers, in words: a change of anything else is not seen."""
    return ", ".join(dict.fromkeys(_place_of(source).covers for source in task.data.sources.values()))


def _place_of(source: Source) -> Place:
    return next(place for name, place in _PLACES.items() if getattr(source, name) is not None)


def _describe_limit(task: Task) -> dict[str, Any]:
    """All that decides how many tokens a row may have, and has, but for the base's files."""
    return {
        "base": task.base_model,
        "template": task.template_json,
        "answers": task.labels or (task.generate and task.generate.to_json()),
        "placement": task.tune.placement,
        "virtual_tokens": max(variant.num_virtual_tokens for variant in task.tune.variants()),
    }


def _dump_settings(data: Data, columns: dict[str, str]) -> dict[str, Any]:
    """The settings that decide which rows are read, how they are checked, and where they go."""
    sources = {split: _dump_source(source) for split, source in data.sources.items()}
    inputs = {"text": columns["text"]} if list(columns) == ["text"] else {"fields": columns}
    unset = {"target"} if data.target is None else set()
    return data.model_dump(mode="json", exclude={"source", "split", "checks", "text", "fields", "too_long"} | unset) | {
        **inputs,
        "source": sources.get(None, sources),
        "split": _dump(data.split, _LATER["split"]),
        "checks": _dump(data.checks, _LATER["checks"]),
    }


def _dump_source(source: Source) -> dict[str, Any]:
    """Its settings but for a package's name and version, which may be those of another archive tomorrow."""
    dumped = _dump(source, _LATER["source"])
    return {
        name: dumped[name] for name in dumped if name not in ({"sha256", "package"} if source.package else {"sha256"})
    }


def _dump(section: Section, later: set[str]) -> dict[str, Any]:
    fields = type(section).model_fields
    unset = {name for name in later if name in fields and getattr(section, name) == fields[name].default}
    return section.model_dump(mode="json", exclude=unset)


def _sweep(home: Path) -> None:
    """Remove the rows that killed runs left in temporary files, after a day."""
    for path in [path for prefix in _TEMPORARY for path in home.glob(f"{prefix}*")]:
        with suppress(OSError):  # another run removed it
            if read_clock().timestamp() - path.lstat().st_mtime < _DAY:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def read_rows(task: Task, home: Path, kept: Mapping[Split | None, Part] = MappingProxyType({})) -> SourceRows:
    """Return the text, label (or target), group, slice and split columns of the task's source or sources.

    kept: sources that were read before. Raises DataError if a file is missing, empty, malformed, lacks a column that
    the task names, or if there is a slice column of more than MAX_SLICE_VALUES distinct values; ServiceUnavailable if a
    server does not answer.
    """
    _sweep(home)
    data = task.data
    wanted = _name_columns(task)
    parts, splits = [], list[Split | None]()
    for split, source in data.sources.items():
        with _naming(split):
            read = [kept[split]] if split in kept else list(_place_of(source).read(source, wanted, home))
        parts += read if split is None else [part._replace(name=_tell_split(split, part.name)) for part in read]
        splits += [split] * sum(count_rows(part.table) for part in read)
    if not parts:
        raise DataError(f"data.source of task {task.name}: there are no rows in any of its files")
    joined = join(parts)
    cells = {name: column.cells for name, column in joined.columns.items()}
    answers = joined.columns[_name_label(data) or data.target or ""]
    rows = SourceRows(
        joined.name,
        {field: cells[column] for field, column in task.columns.items()},
        answers.cells,
        cells[data.split.group] if data.split.group is not None else None,
        list(zip(*(_slice_values(joined.name, one, cells[one]) for one in data.slices), strict=True)),
        joined.places,
        answers.kinds,
        answers.codes,
        joined.misquoted,
    )
    if data.split.column is not None:
        return _place_rows(rows, data, cells[data.split.column])
    return rows._replace(splits=splits) if data.given else rows


def _name_label(data: Data) -> str | None:
    return data.label.column if isinstance(data.label, Binned) else data.label


def _name_columns(task: Task) -> list[Wanted]:
    """The columns that the fields of the template and of `data` name."""
    data = task.data
    texts = {"text" if name == "text" else f"fields.{name}": column for name, column in task.columns.items()}
    fields = texts | {
        "target": data.target,
        "label": _name_label(data),
        "split.group": data.split.group,
        "split.column": data.split.column,
    }
    named = [(column, field) for field, column in fields.items() if column is not None]
    wanted = [Wanted(column, field, text=field == "target" or field in texts) for column, field in named]
    return [*wanted, *(Wanted(column, "slices") for column in data.slices)]


def _place_rows(rows: SourceRows, data: Data, cells: Iterable[str | None]) -> SourceRows:
    """The rows with the split that the split column states; DataError if no row has a value that the task lists."""
    listed = data.split.values()
    values = [cell or "" for cell in cells]
    there = Counter(values)
    missing = [value for value in listed if value not in there]
    if missing:
        counts = ", ".join(
            f"{show_name(value) if value else 'no value'} ({count})" for value, count in there.most_common(_MAX_TOLD)
        )
        many = len(there) > _MAX_TOLD or any(len(value) > _MAX_VALUE for value in there)
        raise DataError(
            f"{rows.source}: no row has {missing[0]!r} in column {data.split.column!r}, which data.split."
            f"{listed[missing[0]]} lists; its values are {f'{len(there)} texts' if many else counts}"
        )
    unlisted = Counter(
        value if len(value) <= _MAX_VALUE else "longer values" for value in values if value not in listed
    )
    return rows._replace(splits=[listed.get(value) for value in values], unlisted=dict(unlisted.most_common()))


def _slice_values(name: str, column: str, cells: Iterable[str | None]) -> list[str]:
    """The cells, empty for a missing one; DataError if there are too many values to be kinds of rows."""
    values = [cell or "" for cell in cells]
    if (kinds := len(set(values))) > MAX_SLICE_VALUES:
        raise DataError(
            f"{name}: column {column!r}, which data.slices names, has {kinds} distinct values; a slice "
            f"column may have at most {MAX_SLICE_VALUES}; name a column with fewer, or leave it out"
        )
    return values
