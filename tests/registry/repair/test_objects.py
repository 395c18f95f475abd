"""What belongs to no version: objects that go between two looks, and snapshots of which the store alone knows."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_report, a_request, a_task, an_artifact
from ptpipeline.data.snapshot import take_snapshot
from ptpipeline.errors import ArtifactError
from ptpipeline.gate.spending import Budget, look_at
from ptpipeline.records.data import Snapshot
from ptpipeline.records.verdicts import Reveal
from ptpipeline.storage import FolderStore, Listed, Stored
from ptpipeline.storage.keys import checkpoint_key, release_key, snapshot_manifest_key, split_key
from registry.ledger.results import Publication
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.repair.rebuild import _prompt, _read_split
from registry.versions.dossier import Dossier
from tests.data.declared import declared
from tests.tiny import sentences, write_csv

STRAY = [snapshot_manifest_key("mood", "a" * 64), release_key("spring"), checkpoint_key("a" * 64), "servers/host.json"]
LOOK = look_at(1, 1, Budget(0.05, 7))
OPINIONS = {"negative": "bad", "positive": "good"}


class Vanishing(FolderStore):
    """A folder from which an object goes right before it is listed again, or right before it is read."""

    stray = ""
    before_read = False

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.listings: Counter[str] = Counter()

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        self.listings[prefix] += 1
        if self.listings[prefix] == 2 and self.stray.startswith(prefix):
            self.delete(self.stray)
        return super().list_objects(prefix)

    def read(self, key: str) -> Stored:
        if self.before_read and key == self.stray:
            self.delete(key)
        return super().read(key)


@pytest.fixture
def vanishing(plain: Registry, tmp_path: Path) -> Registry:
    return Registry(plain.ledger, Vanishing(tmp_path / "store"))


@pytest.mark.parametrize("key", ["servers/new folder", "checkpoints/new folder"])
def test_an_object_at_a_key_of_nobody_is_told_and_ends_nothing(plain: Registry, tmp_path: Path, key: str) -> None:
    path = tmp_path / "store" / key
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    [found] = examine(plain)
    assert found.what == f"object {key}"
    assert f"delete the object {key}" in found.mend


@pytest.mark.parametrize("key", STRAY)
def test_what_is_gone_by_the_second_look_is_no_difference(plain: Registry, vanishing: Registry, key: str) -> None:
    plain.store.create(key, b"{}")
    assert [found.what for found in examine(plain)] == [f"object {key}"]
    vanishing.store.stray = key  # type: ignore[attr-defined]
    assert examine(vanishing) == []
    assert vanishing.store.listings[key.partition("/")[0]] == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", [STRAY[0], *STRAY[2:]])
def test_what_is_gone_before_it_is_read_is_no_difference(plain: Registry, vanishing: Registry, key: str) -> None:
    plain.store.create(key, b"{}")
    vanishing.store.stray, vanishing.store.before_read = key, True  # type: ignore[attr-defined]
    assert examine(vanishing) == []


@pytest.fixture
def snapshot(plain: Registry, tmp_path: Path) -> Snapshot:
    """A snapshot that the store alone knows."""
    task = declared(write_csv(tmp_path / "rows.csv", [(text, OPINIONS[label]) for text, label in sentences(80)]))
    return take_snapshot(task, plain.store, tmp_path)


def damage(registry: Registry, key: str) -> None:
    registry.store.replace(key, b"{}", registry.store.read(key).etag)


def test_rows_of_a_snapshot_that_the_ledger_does_not_know_are_checked_too(plain: Registry, snapshot: Snapshot) -> None:
    assert examine(plain) == []
    key = split_key(snapshot.task, snapshot.digest, "dev")
    damage(plain, key)
    assert [(found.what, found.safe) for found in examine(plain)] == [(f"object {key}", False)]


def test_a_manifest_is_mended_beside_rows_that_nothing_mends(plain: Registry, snapshot: Snapshot) -> None:
    plain.ledger.save_snapshot(snapshot)
    manifest, rows = (
        snapshot_manifest_key(snapshot.task, snapshot.digest),
        split_key(snapshot.task, snapshot.digest, "train"),
    )
    for key in (manifest, rows):
        damage(plain, key)
    fix(plain, {}, examine(plain))
    assert [found.what for found in examine(plain)] == [f"object {rows}"]
    (kept,) = plain.store.keys(f"snapshots/{snapshot.task}/quarantine")
    assert plain.store.read(kept).body == b"{}"


def test_the_rows_behind_a_report_are_those_of_its_snapshot_only_if_it_was_measured_on_them(
    plain: Registry, snapshot: Snapshot
) -> None:
    """Else a look would be counted with rows that nobody looked at."""
    report = a_report(an_artifact(a_task(snapshot.task)), 0.9)
    report = report.model_copy(update={"snapshot": snapshot.digest, "test_digest": snapshot.test.digest})
    assert len(_read_split(plain, report)) == snapshot.test.rows > 0
    with pytest.raises(ArtifactError, match="does not hold the rows of its report"):
        _read_split(plain, report.model_copy(update={"test_digest": snapshot.dev.digest}))


@pytest.mark.parametrize(
    ("fields", "counted"),
    [
        ({}, False),
        ({"look": LOOK}, True),
        ({"reveal": Reveal(by="ann", look=LOOK)}, True),
    ],
)
def test_rows_are_looked_up_of_verdicts_that_looked_at_them_or_were_revealed(
    plain: Registry, snapshot: Snapshot, fields: dict[str, object], counted: bool
) -> None:
    request = a_request(a_task(snapshot.task))
    assert request.report
    assert request.verdict
    report = request.report.model_copy(update={"snapshot": snapshot.digest, "test_digest": snapshot.test.digest})
    publication = Publication(tuned=request.tuned, commit=None, plots={})
    verdict = request.verdict.model_copy(update={"look": None, "reveal": None} | fields)
    found = _prompt(plain, Dossier(publication=publication, report=report, verdict=verdict), "", "")
    assert len(found.rows) == (snapshot.test.rows if counted else 0)
