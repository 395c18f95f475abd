"""Snapshots: one immutable, content-addressed copy of a task's rows in the object store.

`snapshots/<task>/<digest>/{train,dev,test}.parquet`, then `manifest.json`, whose presence means that all of it is
there. The digest covers row identities, texts and labels, not Parquet's bytes, which may differ between versions.
"""

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

from pydantic import ValidationError

from ptpipeline.data.rows import CheckedRow, CheckedRows, Row, check_rows
from ptpipeline.data.sources import read_rows, source_key
from ptpipeline.errors import ArtifactError, DataError, NotFound, PreconditionFailed
from ptpipeline.records import SPLITS, Snapshot, Split, SplitInfo, digest_of
from ptpipeline.storage import ObjectStore
from ptpipeline.task import Task

MANIFEST_FILE = "manifest.json"
COLUMNS = Row._fields


def ingest(task: Task, store: ObjectStore, home: Path) -> Snapshot:
    """Read, check and split the task's rows and store them; equal rows give the same snapshot.

    Idempotent: where the manifest is there already nothing is written, and the record returned carries the present
    source key and check counts. Raises DataError where the source or a blocking check says so.
    """
    key = source_key(task, home)
    source = read_rows(task, home)
    checked = check_rows(task, source)
    splits = _split_rows(checked.rows)
    _check_sizes(source.source, splits)
    snapshot = _described(task, (source.source, key), checked, splits)
    folder = snapshot_prefix(task.name, snapshot.digest)
    if not store.exists(f"{folder}/{MANIFEST_FILE}"):
        for split, rows in splits.items():
            _store_split(store, snapshot, split, rows)
        _store_manifest(store, snapshot)
    return snapshot


def _check_sizes(source: str, splits: dict[Split, list[Row]]) -> None:
    """Whatever the policies: nothing trains or is judged without rows, and an interval over test rows needs two."""
    needed: dict[Split, int] = {"train": 1, "dev": 1, "test": 2}
    for split, count in needed.items():
        if len(splits[split]) < count:
            raise DataError(f"{source}: {len(splits[split])} rows fall into the {split} split, at least {count} are needed; give more rows, or raise its share in data.split")


def read_snapshot(store: ObjectStore, task: str, digest: str) -> Snapshot:
    """The manifest of that snapshot; NotFound where there is no complete one, ArtifactError where it was altered."""
    key = f"{snapshot_prefix(task, digest)}/{MANIFEST_FILE}"
    try:
        snapshot = Snapshot.model_validate_json(store.read(key).body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "manifest"
        raise ArtifactError(f"{store.url}/{key}: {field}: {first['msg']}; the manifest is altered or from a newer ptpipeline") from None
    actual = _digest(snapshot.task, {split: snapshot.split(split) for split in SPLITS})
    if snapshot.task != task or not snapshot.digest == actual == digest:
        raise ArtifactError(f"{store.url}/{key}: hashes to {actual[:12]}, expected {digest[:12]}; the manifest was altered")
    return snapshot


def load_split(store: ObjectStore, snapshot: Snapshot, split: Split) -> list[Row]:
    """The rows of a split, verified; ArtifactError where its object is missing, truncated or altered."""
    key = _split_key(snapshot, split)
    try:
        body = store.read(key).body
    except NotFound:
        raise ArtifactError(f"{store.url}/{key}: missing although the manifest is there; run `ptp ingest {snapshot.task}` after deleting the manifest") from None
    rows = _decoded(body, f"{store.url}/{key}")
    actual, stated = _rows_digest(rows), snapshot.split(split)
    if actual != stated.digest:
        raise ArtifactError(f"{store.url}/{key}: its {len(rows)} rows hash to {actual[:12]}, the manifest states {stated.digest[:12]}; the object was altered")
    if len(rows) != stated.rows or (stated.labels and Counter(row.label for row in rows) != Counter(stated.labels)):
        raise ArtifactError(f"{store.url}/{key}: its {len(rows)} rows are not the {stated.rows} that the manifest counts by label; the manifest was altered")
    return rows


def snapshot_prefix(task: str, digest: str) -> str:
    """Where the snapshot of that digest lies in the object store."""
    return f"snapshots/{task}/{digest}"


# ---------------------------------------------------------------- identity


def _split_rows(rows: list[CheckedRow]) -> dict[Split, list[Row]]:
    splits: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    seen: Counter[str] = Counter()
    for row in rows:
        identity = hashlib.sha256(row.normal.encode()).hexdigest()[:16]
        seen[identity] += 1
        suffix = f"-{seen[identity]}" if seen[identity] > 1 else ""
        splits[row.split].append(Row(identity + suffix, row.text, row.label))
    return splits


def _described(task: Task, origin: tuple[str, str], checked: CheckedRows, splits: dict[Split, list[Row]]) -> Snapshot:
    infos = {split: _split_info(rows, task) for split, rows in splits.items()}
    name, key = origin
    return Snapshot(task=task.name, digest=_digest(task.name, infos), source=name, source_key=key, checks=checked.checks, **infos)


def _split_info(rows: list[Row], task: Task) -> SplitInfo:
    counts = Counter(row.label for row in rows)
    return SplitInfo(rows=len(rows), labels={label: counts[label] for label in task.labels}, digest=_rows_digest(rows))


def _digest(task: str, splits: dict[Split, SplitInfo]) -> str:
    return digest_of({"schema": [*COLUMNS], "task": task, **{split: info.digest for split, info in splits.items()}})


def _rows_digest(rows: list[Row]) -> str:
    """sha256 over one line of JSON per row, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


# ---------------------------------------------------------------- storage


def _split_key(snapshot: Snapshot, split: Split) -> str:
    return f"{snapshot_prefix(snapshot.task, snapshot.digest)}/{split}.parquet"


def _store_split(store: ObjectStore, snapshot: Snapshot, split: Split, rows: list[Row]) -> None:
    try:
        store.create(_split_key(snapshot, split), _encoded(rows))
    except PreconditionFailed:  # another Parquet version wrote it before a crash: the rows decide
        load_split(store, snapshot, split)


def _store_manifest(store: ObjectStore, snapshot: Snapshot) -> None:
    key = f"{snapshot_prefix(snapshot.task, snapshot.digest)}/{MANIFEST_FILE}"
    try:
        store.create(key, json.dumps(snapshot.to_json(), indent=1, sort_keys=True).encode())
    except PreconditionFailed:  # another ingest of the same rows was first, under another source key
        read_snapshot(store, snapshot.task, snapshot.digest)


def _encoded(rows: list[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(column, pa.string()) for column in COLUMNS])
    columns = [[row[index] for row in rows] for index in range(len(COLUMNS))]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(values, pa.string()) for values in columns], schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def _decoded(body: bytes, where: str) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(body), columns=list(COLUMNS))
        columns = [table.column(name).to_pylist() for name in COLUMNS]
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise ArtifactError(f"{where}: {len(body)} bytes are no Parquet file with {', '.join(COLUMNS)} ({type(error).__name__}); the object is truncated or altered") from None
    return [Row(*values) for values in zip(*columns, strict=True)]


__all__ = ["Row", "ingest", "load_split", "read_snapshot", "snapshot_prefix"]
