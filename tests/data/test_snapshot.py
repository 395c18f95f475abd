"""Snapshots in the object store: content-addressed, idempotent, verified on the way out."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ptpipeline.data.rows import split_of
from ptpipeline.data.snapshot import Row, load_split, read_snapshot, take_snapshot
from ptpipeline.errors import ArtifactError, DataError, NotFound
from ptpipeline.records.data import SPLITS, Snapshot
from ptpipeline.storage import FolderStore, ObjectStore
from ptpipeline.storage.keys import snapshot_prefix
from ptpipeline.task.data import SplitSpec
from ptpipeline.task.task import Task
from tests.data.declared import declared

LINES = [f"some text {number},{'good' if number % 3 else 'bad'}" for number in range(80)]


def task_over(folder: Path, lines: list[str], header: str = "text,label", **data: object) -> Task:
    path = folder / "rows.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8", errors="surrogateescape")
    return declared(path, **{"checks": {}, **data})


@pytest.fixture
def snapshot(tmp_path: Path, store: ObjectStore) -> Snapshot:
    return take_snapshot(task_over(tmp_path, LINES), store, tmp_path)


def test_what_was_ingested_is_loaded(store: ObjectStore, tmp_path: Path) -> None:
    snapshot = take_snapshot(task_over(tmp_path, LINES), store, tmp_path)
    assert read_snapshot(store, "reviews", snapshot.digest) == snapshot
    rows = {split: load_split(store, snapshot, split) for split in SPLITS}
    assert sorted(f"{row.text},{row.label}" for split in SPLITS for row in rows[split]) == sorted(LINES)
    for split in SPLITS:
        assert snapshot.split(split).rows == len(rows[split]) == sum(snapshot.split(split).labels.values())


def test_equal_rows_are_the_same_snapshot(tmp_path: Path, store: ObjectStore, snapshot: Snapshot) -> None:
    before = {key: store.read(key).body for key in store.keys("snapshots")}
    again = take_snapshot(
        task_over(tmp_path, [f"{n},{line}" for n, line in enumerate(LINES)], "id,text,label"), store, tmp_path
    )
    assert again.digest == snapshot.digest
    assert again.source_key != snapshot.source_key
    assert {key: store.read(key).body for key in store.keys("snapshots")} == before


@pytest.mark.parametrize("changed", ["some text 1,bad", "some other text,good"])
def test_another_row_is_another_snapshot(tmp_path: Path, store: ObjectStore, snapshot: Snapshot, changed: str) -> None:
    other = take_snapshot(task_over(tmp_path, [LINES[0], changed, *LINES[2:]]), store, tmp_path)
    assert other.digest != snapshot.digest
    assert read_snapshot(store, "reviews", snapshot.digest) == snapshot


def test_a_relabelled_row_keeps_id_and_split(tmp_path: Path, store: ObjectStore, snapshot: Snapshot) -> None:
    other = take_snapshot(task_over(tmp_path, [LINES[0], "some text 1,bad", *LINES[2:]]), store, tmp_path)
    for split in SPLITS:
        ids = [[row.id for row in load_split(store, which, split)] for which in (snapshot, other)]
        assert ids[0] == ids[1]


def test_repeats_have_ids_of_their_own(tmp_path: Path, store: ObjectStore) -> None:
    checks = {"duplicate": "off", "rows_per_label": "off"}
    others = [f"text {number},good" for number in range(30)]
    snapshot = take_snapshot(
        task_over(tmp_path, ["same,bad", "Same,bad", "SAME,bad", *others], checks=checks), store, tmp_path
    )
    rows = [row for split in SPLITS for row in load_split(store, snapshot, split)]
    base = "0967115f2813a3541eaef77de9d9d577"[:16]
    assert [row.id for row in rows if row.label == "bad"] == [base, f"{base}-2", f"{base}-3"]


def test_a_split_without_rows_is_refused(tmp_path: Path, store: ObjectStore) -> None:
    with pytest.raises(DataError, match=r"rows fall into the (dev|test) split"):
        take_snapshot(task_over(tmp_path, ["one,bad", "two,good"], checks={"rows_per_label": "off"}), store, tmp_path)
    assert not list(store.keys("snapshots"))


def test_a_blocking_check_stores_nothing(tmp_path: Path, store: ObjectStore) -> None:
    with pytest.raises(DataError, match="unknown_label"):
        take_snapshot(task_over(tmp_path, [*LINES, "more,ugly"]), store, tmp_path)
    assert not list(store.keys("snapshots"))


def test_an_interrupted_ingest_is_finished(tmp_path: Path, store: ObjectStore, snapshot: Snapshot) -> None:
    folder = snapshot_prefix("reviews", snapshot.digest)
    for name in ("manifest.json", "test.parquet"):
        store.delete(f"{folder}/{name}")
    with pytest.raises(NotFound):
        read_snapshot(store, "reviews", snapshot.digest)
    again = take_snapshot(task_over(tmp_path, LINES), store, tmp_path)
    assert again == read_snapshot(store, "reviews", snapshot.digest)
    assert load_split(store, snapshot, "test")


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    class Recording(FolderStore):
        def create(self, key: str, body: bytes) -> None:
            written.append(key.rsplit("/", 1)[1])
            super().create(key, body)

    written: list[str] = []
    take_snapshot(task_over(tmp_path, LINES), Recording(tmp_path / "store"), tmp_path)
    assert written == ["train.parquet", "dev.parquet", "test.parquet", "manifest.json"]


def test_another_encoding_of_the_same_rows_is_accepted(tmp_path: Path, store: ObjectStore, snapshot: Snapshot) -> None:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(body_of(store, snapshot, "test.parquet"))), buffer, compression="none")
    altered(store, snapshot, "test.parquet", buffer.getvalue())
    store.delete(f"{snapshot_prefix('reviews', snapshot.digest)}/manifest.json")
    assert take_snapshot(task_over(tmp_path, LINES), store, tmp_path) == snapshot


def body_of(store: ObjectStore, snapshot: Snapshot, name: str) -> bytes:
    return store.read(f"{snapshot_prefix('reviews', snapshot.digest)}/{name}").body


def altered(store: ObjectStore, snapshot: Snapshot, name: str, change: bytes | None) -> None:
    """Put `change` in the object's place, or its own bytes less the last nine."""
    body = body_of(store, snapshot, name)[:-9] if change is None else change
    store.delete(f"{snapshot_prefix('reviews', snapshot.digest)}/{name}")
    store.create(f"{snapshot_prefix('reviews', snapshot.digest)}/{name}", body)


def test_swapped_splits_are_refused(store: ObjectStore, snapshot: Snapshot) -> None:
    altered(store, snapshot, "test.parquet", body_of(store, snapshot, "dev.parquet"))
    with pytest.raises(ArtifactError, match=r"test\.parquet: its \d+ rows hash to"):
        load_split(store, snapshot, "test")


def test_leftovers_with_other_rows_are_refused(tmp_path: Path, store: ObjectStore, snapshot: Snapshot) -> None:
    altered(store, snapshot, "test.parquet", body_of(store, snapshot, "dev.parquet"))
    store.delete(f"{snapshot_prefix('reviews', snapshot.digest)}/manifest.json")
    with pytest.raises(ArtifactError, match=r"test\.parquet"):
        take_snapshot(task_over(tmp_path, LINES), store, tmp_path)
    with pytest.raises(NotFound):
        read_snapshot(store, "reviews", snapshot.digest)


@pytest.mark.parametrize("change", [None, b"", b"PAR1"])
def test_a_truncated_split_is_refused(store: ObjectStore, snapshot: Snapshot, change: bytes | None) -> None:
    altered(store, snapshot, "train.parquet", change)
    with pytest.raises(ArtifactError, match=r"train\.parquet.*truncated or altered"):
        load_split(store, snapshot, "train")


def test_a_missing_split_is_refused(store: ObjectStore, snapshot: Snapshot) -> None:
    store.delete(f"{snapshot_prefix('reviews', snapshot.digest)}/dev.parquet")
    with pytest.raises(ArtifactError, match="missing although the manifest is there"):
        load_split(store, snapshot, "dev")


@pytest.mark.parametrize("change", [b"", b"{}", b"{"])
def test_a_broken_manifest_is_refused(store: ObjectStore, snapshot: Snapshot, change: bytes) -> None:
    altered(store, snapshot, "manifest.json", change)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_snapshot(store, "reviews", snapshot.digest)


def test_a_manifest_with_other_digests_is_refused(store: ObjectStore, snapshot: Snapshot) -> None:
    record = snapshot.to_json()
    record["train"]["digest"] = "0" * 64
    altered(store, snapshot, "manifest.json", json.dumps(record).encode())
    with pytest.raises(ArtifactError, match="the manifest was altered"):
        read_snapshot(store, "reviews", snapshot.digest)


@pytest.mark.parametrize("field", ["rows", "labels"])
def test_a_manifest_with_other_counts_is_refused(store: ObjectStore, snapshot: Snapshot, field: str) -> None:
    record = snapshot.to_json()
    record["dev"][field] = {"rows": 999, "labels": {"bad": 1, "good": 1}}[field]
    altered(store, snapshot, "manifest.json", json.dumps(record).encode())
    with pytest.raises(ArtifactError, match=r"dev\.parquet: its \d+ rows are not"):
        load_split(store, read_snapshot(store, "reviews", snapshot.digest), "dev")


def test_a_manifest_of_another_task_is_refused(store: ObjectStore, snapshot: Snapshot) -> None:
    store.create(
        f"{snapshot_prefix('other', snapshot.digest)}/manifest.json", body_of(store, snapshot, "manifest.json")
    )
    with pytest.raises(ArtifactError, match="the manifest was altered"):
        read_snapshot(store, "other", snapshot.digest)


def test_the_manifest_counts_every_check(tmp_path: Path, store: ObjectStore) -> None:
    faults = ["caf\udce9,bad", " ,good", "some text 1,good", "some text 2,bad"]
    snapshot = take_snapshot(task_over(tmp_path, [*LINES, *faults]), store, tmp_path)
    found = {check.name: check.count for check in read_snapshot(store, "reviews", snapshot.digest).checks}
    assert found == {
        "encoding": 1,
        "empty_text": 1,
        "unknown_label": 0,
        "duplicate": 1,
        "conflicting_label": 2,
        "split_overlap": 0,
        "near_duplicate": 76,
        "rows_per_label": 0,
    }


def test_an_unreadable_byte_is_counted(tmp_path: Path) -> None:
    task = task_over(tmp_path, LINES)
    path = Path(task.data.source.path or "")
    path.write_bytes(path.read_bytes() + "caf\u00e9,bad\n".encode("latin-1"))
    checks = {check.name: check for check in take_snapshot(task, FolderStore(tmp_path / "store"), tmp_path).checks}
    assert (checks["encoding"].count, checks["encoding"].detail) == (1, "line 82")


def test_ingests_at_once_store_one_snapshot(tmp_path: Path, store: ObjectStore) -> None:
    task = task_over(tmp_path, LINES)
    with ThreadPoolExecutor(3) as pool:
        snapshots = list(pool.map(lambda _: take_snapshot(task, store, tmp_path), range(3)))
    assert len({snapshot.digest for snapshot in snapshots}) == 1
    assert len(list(store.keys("snapshots"))) == 4


def test_a_manifest_that_another_ingest_wrote_meanwhile_is_verified(tmp_path: Path) -> None:
    class Earlier(FolderStore):
        """A store that is asked just before the other ingest writes."""

        def exists(self, key: str) -> bool:
            return False

    task, store = task_over(tmp_path, LINES), Earlier(tmp_path / "store")
    snapshot = take_snapshot(task, store, tmp_path)
    assert take_snapshot(task, store, tmp_path) == snapshot
    altered(store, snapshot, "manifest.json", b"{}")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        take_snapshot(task, store, tmp_path)


def test_a_row_is_id_fields_label_and_slices() -> None:
    assert Row._fields == ("id", "fields", "label", "slices")


def test_snapshots_from_before_slices_and_reserves_keep_their_digest(
    tmp_path: Path, store: ObjectStore, snapshot: Snapshot
) -> None:
    assert snapshot.digest == "4970fcec5cdb05d489e5b993749abbd66e4637d5e4b739f7027a9dcd2ddff096"
    assert snapshot.train.digest == "4fcfc79a31ea40cb5db91371c0e1dd9aae3c348bc9e3367833008db7a371380d"
    assert list(snapshot.to_json()) == [
        "schema_version",
        "task",
        "digest",
        "source",
        "source_key",
        "train",
        "dev",
        "test",
        "checks",
    ]
    assert list(snapshot.to_json()["test"]) == ["rows", "labels", "digest"]


# ---------------------------------------------------------------- reserve


HELD_BACK = {"dev": 0.2, "test": 0.2, "reserve": 0.2}


def test_a_reserve_is_stored_and_loaded(tmp_path: Path, store: ObjectStore, snapshot: Snapshot) -> None:
    held = take_snapshot(task_over(tmp_path, LINES, split=HELD_BACK, checks={"min_rows_per_label": 1}), store, tmp_path)
    assert read_snapshot(store, "reviews", held.digest) == held
    assert list(held.splits()) == ["train", "dev", "test", "reserve"]
    assert (held.dev, held.test) == (snapshot.dev, snapshot.test)
    rows = load_split(store, held, "reserve")
    assert held.reserve is not None
    assert (held.reserve.rows, held.train.rows) == (len(rows), snapshot.train.rows - len(rows))
    trained = {row.id for row in load_split(store, snapshot, "train")}
    assert {row.id for row in rows} < trained


def test_a_snapshot_without_reserve_says_so(store: ObjectStore, snapshot: Snapshot) -> None:
    with pytest.raises(NotFound, match=r"no reserve split; set data\.split\.reserve"):
        load_split(store, snapshot, "reserve")


def test_a_reserve_without_rows_is_refused(tmp_path: Path, store: ObjectStore) -> None:
    task = task_over(tmp_path, LINES, split={**HELD_BACK, "reserve": 0.0001}, checks={"rows_per_label": "off"})
    with pytest.raises(DataError, match="0 rows fall into the reserve split, at least 2 are needed"):
        take_snapshot(task, store, tmp_path)


def test_a_reserve_of_one_row_is_refused(tmp_path: Path) -> None:
    texts = [line.partition(",")[0] for line in LINES]

    def count(share: float) -> int:
        spec = SplitSpec(**(HELD_BACK | {"reserve": share}))
        return sum(split_of(text, spec) == "reserve" for text in texts)

    share = next(share for share in (number / 500 for number in range(1, 100)) if count(share) == 1)
    task = task_over(tmp_path, LINES, split={**HELD_BACK, "reserve": share}, checks={"rows_per_label": "off"})
    with pytest.raises(DataError, match="1 rows fall into the reserve split, at least 2 are needed"):
        take_snapshot(task, FolderStore(tmp_path / "store"), tmp_path)


def test_a_reserve_taken_out_of_the_manifest_is_noticed(tmp_path: Path, store: ObjectStore) -> None:
    held = take_snapshot(task_over(tmp_path, LINES, split=HELD_BACK, checks={"min_rows_per_label": 1}), store, tmp_path)
    record = held.to_json()
    del record["reserve"]
    altered(store, held, "manifest.json", json.dumps(record).encode())
    with pytest.raises(ArtifactError, match="the manifest was altered"):
        read_snapshot(store, "reviews", held.digest)


# ---------------------------------------------------------------- slices


SLICED = [f"{line},{('web', 'app', '')[number % 3]}" for number, line in enumerate(LINES)]


@pytest.fixture
def sliced(tmp_path: Path, store: ObjectStore) -> Snapshot:
    return take_snapshot(task_over(tmp_path, SLICED, "text,label,channel", slices=["channel"]), store, tmp_path)


def test_slice_values_are_stored_with_their_rows(store: ObjectStore, sliced: Snapshot) -> None:
    import pyarrow.parquet as pq

    assert read_snapshot(store, "reviews", sliced.digest) == sliced
    assert {
        f"{row.text},{row.label},{row.slices[0]}" for split in SPLITS for row in load_split(store, sliced, split)
    } == set(SLICED)
    assert pq.read_table(io.BytesIO(body_of(store, sliced, "dev.parquet"))).column_names == [
        "id",
        "text",
        "label",
        "slice.channel",
    ]


def test_slices_make_another_snapshot_of_the_same_rows(
    store: ObjectStore, snapshot: Snapshot, sliced: Snapshot
) -> None:
    assert sliced.digest != snapshot.digest
    assert [sliced.split(split).digest for split in SPLITS] == [snapshot.split(split).digest for split in SPLITS]


def test_another_slice_value_is_another_snapshot(tmp_path: Path, store: ObjectStore, sliced: Snapshot) -> None:
    other = take_snapshot(
        task_over(tmp_path, [*SLICED[:-1], SLICED[-1] + "x"], "text,label,channel", slices=["channel"]), store, tmp_path
    )
    assert other.digest != sliced.digest


def test_altered_slice_values_are_refused(tmp_path: Path, store: ObjectStore, sliced: Snapshot) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(body_of(store, sliced, "test.parquet")))
    buffer = io.BytesIO()
    pq.write_table(table.set_column(3, "slice.channel", pa.array(["web"] * len(table))), buffer)
    altered(store, sliced, "test.parquet", buffer.getvalue())
    with pytest.raises(ArtifactError, match=r"test\.parquet: .* the object was altered"):
        load_split(store, sliced, "test")
