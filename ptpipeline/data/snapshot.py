"""Snapshots: one immutable, content-addressed copy of a task's rows in the object store.

`snapshots/<task>/<digest>/{train,dev,test}.parquet`, and `reserve.parquet` if the task holds rows back, then
`manifest.json`, whose presence means that the snapshot is complete. The digest covers row identities, texts, labels and
slice values, not Parquet's bytes, which may differ between versions.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ptpipeline.data.parquet import read_table
from ptpipeline.data.rows import Built, CheckedRow, CheckedRows, Row, identify_rows
from ptpipeline.data.sources import OpenSource
from ptpipeline.data.table import JoinedPlaces, Places
from ptpipeline.data.validation import check_labels_again, check_rows
from ptpipeline.errors import ArtifactError, DataError, NotFound, PreconditionFailed
from ptpipeline.foreign import parse_record, parsing
from ptpipeline.progress import phase
from ptpipeline.records.base import digest_of
from ptpipeline.records.data import SPLITS, DataCheck, Snapshot, Split, SplitInfo
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import snapshot_manifest_key, split_key
from ptpipeline.task.task import Task

CHUNK = 100_000  # rows that are written at once
FindLong = Callable[[Sequence[CheckedRow]], list[int]]  # the indexes of the rows that are too long


def take_snapshot(
    task: Task, store: ObjectStore, home: Path, find_long: FindLong | None = None, opened: OpenSource | None = None
) -> Snapshot:
    """Read, check and split the task's rows and store them; equal rows give the same snapshot.

    find_long: finds the rows that `too_long: drop` leaves out; without it they stay. opened: the source, if it was
    asked for its key before.

    Idempotent: if the manifest is already there, nothing is written, and the record returned has the present source key
    and check counts. Raises DataError if the source is not readable, a check blocks, or a split is too small,
    ServiceUnavailable if the source changed while it was read: its key would stand for other rows.
    """
    opened = opened or OpenSource(task, home)
    with phase("read"):
        source = opened.read()
    with phase("check"):
        checked = check_rows(task, source)
    if find_long is not None:
        checked = check_labels_again(task, source, drop_long(checked, source.places, find_long))
    splits = _group_by_split(checked.rows, task)
    _check_sizes(source.source, splits, task, checked.checks)
    snapshot = _describe(task, _Origin(source.source, opened.key), checked, splits)
    if not store.exists(snapshot_manifest_key(task.name, snapshot.digest)):
        with phase("write"):
            for split, rows in splits.items():
                _store_split(store, snapshot, split, rows)
        _store_manifest(store, snapshot)
    return snapshot


def drop_long(checked: CheckedRows, places: Places | JoinedPlaces, find_long: FindLong) -> CheckedRows:
    """Return the rows without those that are too long, and count these among the checks."""
    long = set(find_long(checked.rows))
    numbers = [checked.rows[index].number for index in long]
    check = DataCheck(
        name="too_long",
        policy="warn",
        count=len(long),
        outcome="warned" if long else "ok",
        detail=places.describe(numbers) if numbers else "",
    )
    return CheckedRows(checked.rows.without(long), [*checked.checks, check])


def _check_sizes(source: str, splits: dict[Split, Sequence[Row]], task: Task, checks: Sequence[DataCheck]) -> None:
    """Every split needs rows under any policy, and an interval over test rows needs two."""
    found = ", ".join(f"{check.name} {check.count}" for check in checks if check.count)
    needed: dict[Split, int] = {"train": 1, "dev": 1, "test": 2, "reserve": 2}
    for split in splits:
        if len(splits[split]) < (count := needed[split]):
            share = "" if split in task.data.given else ", or raise its share in data.split"
            raise DataError(
                f"{source}: {len(splits[split])} rows fall into the {split} split, at least {count} are "
                f"needed; give more rows{share}{found and f' (rows that checks found: {found})'}"
            )


def read_snapshot(store: ObjectStore, task: str, digest: str) -> Snapshot:
    """Return the manifest of a snapshot.

    Raises NotFound if there is no complete one, ArtifactError if it was altered.
    """
    key = snapshot_manifest_key(task, digest)
    snapshot = parse_record(Snapshot, store.read(key).body, f"{store.url}/{key}")
    actual = _digest(snapshot)
    if snapshot.task != task or not snapshot.digest == actual == digest:
        raise ArtifactError(
            f"{store.url}/{key}: hashes to {actual[:12]}, expected {digest[:12]}; the manifest was altered"
        )
    return snapshot


def load_split(store: ObjectStore, snapshot: Snapshot, split: Split) -> list[Row]:
    """Return the verified rows of a split.

    Raises ArtifactError if its object is missing, truncated or altered, NotFound if the snapshot has no such split.
    """
    key, stated = split_key(snapshot.task, snapshot.digest, split), snapshot.split(split)
    try:
        body = store.read(key).body
    except NotFound:
        raise ArtifactError(
            f"{store.url}/{key}: missing although the manifest is there; run `ptp ingest {snapshot.task}` "
            "after deleting the manifest"
        ) from None
    rows = _decode(body, f"{store.url}/{key}", snapshot)
    actual = _rows_digest(rows)
    if actual != stated.digest or _slices_digest(rows, snapshot.slices) != stated.slices:
        raise ArtifactError(
            f"{store.url}/{key}: its {len(rows)} rows hash to {actual[:12]}, the manifest states "
            f"{stated.digest[:12]}; the object was altered"
        )
    if len(rows) != stated.rows or (stated.labels and Counter(row.label for row in rows) != Counter(stated.labels)):
        raise ArtifactError(
            f"{store.url}/{key}: its {len(rows)} rows are not the {stated.rows} that the manifest counts by "
            "label; the manifest was altered"
        )
    return rows


# ---------------------------------------------------------------- identity


def _group_by_split(checked: Sequence[CheckedRow], task: Task) -> dict[Split, Sequence[Row]]:
    places: dict[Split, list[int]] = {split: [] for split in SPLITS}
    if task.data.split.reserve:
        places["reserve"] = []
    for place, row in enumerate(checked):
        places[row.split].append(place)
    rows = identify_rows(checked)
    return {split: Built(rows.build, some) for split, some in places.items()}


class _Origin(NamedTuple):
    """The source in words, and its key."""

    name: str
    key: str


def _describe(task: Task, origin: _Origin, checked: CheckedRows, splits: dict[Split, Sequence[Row]]) -> Snapshot:
    infos = {split: _split_info(rows, task) for split, rows in splits.items()}
    snapshot = Snapshot(
        task=task.name,
        digest="",
        source=origin.name,
        source_key=origin.key,
        checks=checked.checks,
        slices=task.data.slices,
        fields=list(task.columns),
        **infos,
    )
    return snapshot.model_copy(update={"digest": _digest(snapshot)})


def _split_info(rows: Sequence[Row], task: Task) -> SplitInfo:
    counts = Counter(row.label for row in rows)
    return SplitInfo(
        rows=len(rows),
        labels={label: counts[label] for label in task.labels},
        digest=_rows_digest(rows),
        slices=_slices_digest(rows, task.data.slices),
    )


def _digest(snapshot: Snapshot) -> str:
    parts: dict[str, Any] = {"schema": ["id", *snapshot.fields, "label"], "task": snapshot.task}
    splits = snapshot.splits()
    parts |= {split: info.digest for split, info in splits.items()}
    if snapshot.slices:
        parts["slices"] = {"columns": snapshot.slices, "digests": [info.slices for info in splits.values()]}
    return digest_of(parts)


def _rows_digest(rows: Sequence[Row]) -> str:
    return _lines_digest((row.id, *(row.fields[name] for name in sorted(row.fields)), row.label) for row in rows)


def _slices_digest(rows: Sequence[Row], columns: list[str]) -> str | None:
    return _lines_digest(row.slices for row in rows) if columns else None


def _lines_digest(lines: Iterable[tuple[str, ...]]) -> str:
    """sha256 over one line of JSON per row, in order."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


# ---------------------------------------------------------------- storage


def _store_split(store: ObjectStore, snapshot: Snapshot, split: Split, rows: Sequence[Row]) -> None:
    try:
        store.create(split_key(snapshot.task, snapshot.digest, split), _encode(rows, snapshot))
    except PreconditionFailed:  # another Parquet version wrote it before a crash: the rows decide
        load_split(store, snapshot, split)


def encode_manifest(snapshot: Snapshot) -> bytes:
    """Return the manifest's bytes."""
    return json.dumps(snapshot.to_json(), indent=1, sort_keys=True).encode()


def _store_manifest(store: ObjectStore, snapshot: Snapshot) -> None:
    key = snapshot_manifest_key(snapshot.task, snapshot.digest)
    try:
        store.create(key, encode_manifest(snapshot))
    except PreconditionFailed:  # another ingest of the same rows was first, under another source key
        read_snapshot(store, snapshot.task, snapshot.digest)


def _columns(snapshot: Snapshot) -> list[str]:
    """The columns of a split: a field or slice of any name stands beside `id` and `label`."""
    fields = ["text" if name == "text" else f"field.{name}" for name in snapshot.fields]
    return ["id", *fields, "label", *(f"slice.{column}" for column in snapshot.slices)]


def _encode(rows: Sequence[Row], snapshot: Snapshot) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(column, pa.string()) for column in _columns(snapshot)])
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for start in range(0, max(len(rows), 1), CHUNK):
            some = rows[start : start + CHUNK]
            columns = [
                [row.id for row in some],
                *([row.fields[name] for row in some] for name in snapshot.fields),
                [row.label for row in some],
                *([row.slices[index] for row in some] for index in range(len(snapshot.slices))),
            ]
            writer.write_table(pa.table([pa.array(values, pa.string()) for values in columns], schema))
    return buffer.getvalue()


def _decode(body: bytes, address: str, snapshot: Snapshot) -> list[Row]:
    names, count = _columns(snapshot), len(snapshot.fields)
    what = f"{address}: {len(body)} bytes are not a Parquet file with {', '.join(names)}"
    with parsing(what, "the object is truncated or altered"):
        table = read_table(body, names)
        columns = [table.column(name).to_pylist() for name in names]
    return [
        Row(identity, dict(zip(snapshot.fields, values, strict=False)), values[count], tuple(values[count + 1 :]))
        for identity, *values in zip(*columns, strict=True)
    ]


__all__ = ["Row", "load_split", "read_snapshot", "take_snapshot"]
