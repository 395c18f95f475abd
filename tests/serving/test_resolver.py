"""A reference names a version by a pointer or a number; an object that was copied to another's key names nothing."""

from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_task, an_artifact
from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.prompts.artifact import write_artifact
from ptpipeline.records.base import now
from ptpipeline.records.versions import PRODUCTION, Pointer, Promotion, VersionName
from ptpipeline.serving.resolver import resolve
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import pointer_key, version_key


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """A store in which mood@production and mood@1 are one prompt."""
    store = FolderStore(tmp_path)
    digest = write_artifact(store, an_artifact(a_task("mood")))
    promotion = Promotion(
        task="mood",
        alias=PRODUCTION,
        seq=1,
        version=1,
        digest=digest,
        previous=None,
        actor="a person",
        reason="the first",
        verdict=None,
        at=now(),
    )
    pointer = Pointer(promotion=promotion, nonce="0" * 16)
    store.create(pointer_key("mood", PRODUCTION), pointer.model_dump_json().encode())
    name = VersionName(task="mood", number=1, digest=digest)
    store.create(version_key("mood", 1), name.model_dump_json().encode())
    return store


@pytest.mark.parametrize("reference", ["mood", "mood@production", "mood@1"])
def test_a_reference_leads_to_the_version(store: FolderStore, reference: str) -> None:
    found = resolve(store, reference)
    assert (found.name, found.artifact) == ("mood@1", an_artifact(a_task("mood")))


@pytest.mark.parametrize(
    ("reference", "way"),
    [("books", "train one with `ptp run books`"), ("mood@staging", "`ptp promote mood@N --alias staging` makes one")],
)
def test_who_asks_for_an_alias_that_is_not_there_is_told_what_makes_it(
    store: FolderStore, reference: str, way: str
) -> None:
    with pytest.raises(NotFound) as missing:
        resolve(store, reference)
    assert way in str(missing.value)
    assert str(missing.value).endswith("`ptp versions` lists tasks, versions and aliases")


@pytest.mark.parametrize(
    ("task", "alias"), [("mood", "canary"), ("books", PRODUCTION)], ids=["of another alias", "of another task"]
)
def test_a_copied_pointer_is_refused(store: FolderStore, task: str, alias: str) -> None:
    store.create(pointer_key(task, alias), store.read(pointer_key("mood", PRODUCTION)).body)
    with pytest.raises(ArtifactError, match="points for mood@production; `ptp reconcile` writes it again"):
        resolve(store, f"{task}@{alias}")


@pytest.mark.parametrize(("task", "number"), [("mood", 2), ("books", 1)], ids=["of another number", "of another task"])
def test_a_copied_name_of_a_version_is_refused(store: FolderStore, task: str, number: int) -> None:
    store.create(version_key(task, number), store.read(version_key("mood", 1)).body)
    with pytest.raises(ArtifactError, match="records mood@1; `ptp doctor` shows what was altered"):
        resolve(store, f"{task}@{number}")
