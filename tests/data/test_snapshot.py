"""Snapshots in the object store: content-addressed, idempotent, verified on the way out."""

import json
from pathlib import Path

import pytest

from ptpipeline.data.snapshot import Row, ingest, load_split, read_snapshot, snapshot_prefix
from ptpipeline.errors import ArtifactError, DataError, NotFound
from ptpipeline.records import SPLITS, Snapshot
from ptpipeline.storage import FolderStore, ObjectStore
from ptpipeline.task import Task
from tests.data.declared import declared

LINES = [f"some text {number},{'good' if number % 3 else 'bad'}" for number in range(80)]


def task_over(folder: Path, lines: list[str], header: str = "text,label", **data: object) -> Task:
    path = folder / "rows.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return declared(path, **{"checks": {}, **data})


@pytest.fixture
def folder_store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def snapshot(tmp_path: Path, folder_store: FolderStore) -> Snapshot:
    return ingest(task_over(tmp_path, LINES), folder_store, tmp_path)


def test_what_was_ingested_is_loaded(store: ObjectStore, tmp_path: Path) -> None:
    snapshot = ingest(task_over(tmp_path, LINES), store, tmp_path)
    assert read_snapshot(store, "reviews", snapshot.digest) == snapshot
    rows = {split: load_split(store, snapshot, split) for split in SPLITS}
    assert sorted(f"{row.text},{row.label}" for split in SPLITS for row in rows[split]) == sorted(LINES)
    for split in SPLITS:
        assert snapshot.split(split).rows == len(rows[split]) == sum(snapshot.split(split).labels.values())


def test_equal_rows_are_the_same_snapshot(tmp_path: Path, folder_store: FolderStore, snapshot: Snapshot) -> None:
    before = {key: folder_store.read(key).body for key in folder_store.keys("snapshots")}
    again = ingest(task_over(tmp_path, [f"{n},{line}" for n, line in enumerate(LINES)], "id,text,label"), folder_store, tmp_path)
    assert again.digest == snapshot.digest
    assert again.source_key != snapshot.source_key
    assert {key: folder_store.read(key).body for key in folder_store.keys("snapshots")} == before


@pytest.mark.parametrize("changed", ["some text 1,bad", "some other text,good"])
def test_another_row_is_another_snapshot(tmp_path: Path, folder_store: FolderStore, snapshot: Snapshot, changed: str) -> None:
    other = ingest(task_over(tmp_path, [LINES[0], changed, *LINES[2:]]), folder_store, tmp_path)
    assert other.digest != snapshot.digest
    assert read_snapshot(folder_store, "reviews", snapshot.digest) == snapshot


def test_a_relabelled_row_keeps_id_and_split(tmp_path: Path, folder_store: FolderStore, snapshot: Snapshot) -> None:
    other = ingest(task_over(tmp_path, [LINES[0], "some text 1,bad", *LINES[2:]]), folder_store, tmp_path)
    for split in SPLITS:
        ids = [[row.id for row in load_split(folder_store, which, split)] for which in (snapshot, other)]
        assert ids[0] == ids[1]


def test_repeats_have_ids_of_their_own(tmp_path: Path, folder_store: FolderStore) -> None:
    checks = {"duplicate": "off", "rows_per_label": "off"}
    snapshot = ingest(task_over(tmp_path, ["same,bad", "Same,bad", "SAME,bad"], checks=checks), folder_store, tmp_path)
    rows = [row for split in SPLITS for row in load_split(folder_store, snapshot, split)]
    base = "0967115f2813a3541eaef77de9d9d577"[:16]
    assert [row.id for row in rows] == [base, f"{base}-2", f"{base}-3"]


def test_a_blocking_check_stores_nothing(tmp_path: Path, folder_store: FolderStore) -> None:
    with pytest.raises(DataError, match="unknown_label"):
        ingest(task_over(tmp_path, [*LINES, "more,ugly"]), folder_store, tmp_path)
    assert not folder_store.root.exists()


def test_an_interrupted_ingest_is_finished(tmp_path: Path, folder_store: FolderStore, snapshot: Snapshot) -> None:
    folder = snapshot_prefix("reviews", snapshot.digest)
    for name in ("manifest.json", "test.parquet"):
        folder_store.delete(f"{folder}/{name}")
    with pytest.raises(NotFound):
        read_snapshot(folder_store, "reviews", snapshot.digest)
    assert ingest(task_over(tmp_path, LINES), folder_store, tmp_path) == read_snapshot(folder_store, "reviews", snapshot.digest)
    assert load_split(folder_store, snapshot, "test")


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    class Recording(FolderStore):
        def create(self, key: str, body: bytes) -> None:
            written.append(key.rsplit("/", 1)[1])
            super().create(key, body)

    written: list[str] = []
    ingest(task_over(tmp_path, LINES), Recording(tmp_path / "store"), tmp_path)
    assert written == ["train.parquet", "dev.parquet", "test.parquet", "manifest.json"]


def test_another_encoding_of_the_same_rows_is_accepted(tmp_path: Path, folder_store: FolderStore, snapshot: Snapshot) -> None:
    import pyarrow.parquet as pq

    folder = folder_store.root / snapshot_prefix("reviews", snapshot.digest)
    pq.write_table(pq.read_table(folder / "test.parquet"), folder / "test.parquet", compression="none")
    (folder / "manifest.json").unlink()
    assert ingest(task_over(tmp_path, LINES), folder_store, tmp_path) == snapshot


def altered(store: FolderStore, snapshot: Snapshot, name: str, change: bytes | None) -> None:
    path = store.root / snapshot_prefix("reviews", snapshot.digest) / name
    path.write_bytes(change if change is not None else path.read_bytes()[:-9])


def test_swapped_splits_are_refused(folder_store: FolderStore, snapshot: Snapshot) -> None:
    folder = folder_store.root / snapshot_prefix("reviews", snapshot.digest)
    altered(folder_store, snapshot, "test.parquet", (folder / "dev.parquet").read_bytes())
    with pytest.raises(ArtifactError, match=r"test\.parquet: its \d+ rows hash to"):
        load_split(folder_store, snapshot, "test")


@pytest.mark.parametrize("change", [None, b"", b"PAR1"])
def test_a_truncated_split_is_refused(folder_store: FolderStore, snapshot: Snapshot, change: bytes | None) -> None:
    altered(folder_store, snapshot, "train.parquet", change)
    with pytest.raises(ArtifactError, match=r"train\.parquet.*truncated or altered"):
        load_split(folder_store, snapshot, "train")


def test_a_missing_split_is_refused(folder_store: FolderStore, snapshot: Snapshot) -> None:
    folder_store.delete(f"{snapshot_prefix('reviews', snapshot.digest)}/dev.parquet")
    with pytest.raises(ArtifactError, match="missing although the manifest is there"):
        load_split(folder_store, snapshot, "dev")


@pytest.mark.parametrize("change", [b"", b"{}", b"{"])
def test_a_broken_manifest_is_refused(folder_store: FolderStore, snapshot: Snapshot, change: bytes) -> None:
    altered(folder_store, snapshot, "manifest.json", change)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_snapshot(folder_store, "reviews", snapshot.digest)


def test_a_manifest_with_other_digests_is_refused(folder_store: FolderStore, snapshot: Snapshot) -> None:
    record = snapshot.to_json()
    record["train"]["digest"] = "0" * 64
    altered(folder_store, snapshot, "manifest.json", json.dumps(record).encode())
    with pytest.raises(ArtifactError, match="the manifest was altered"):
        read_snapshot(folder_store, "reviews", snapshot.digest)


def test_a_row_is_id_text_label() -> None:
    assert Row._fields == ("id", "text", "label")
