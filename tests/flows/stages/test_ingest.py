"""A snapshot and the garbage collection: rows that are gone are taken again."""

from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_task
from flows.stages.context import Context
from flows.stages.ingest import ingest
from ptpipeline.storage import FolderStore
from registry.registry import Registry
from tests.tiny import sentences, write_csv


class Collected(FolderStore):
    """A folder whose objects are collected just before somebody first asks whether one is there."""

    asked = 0

    def exists(self, key: str) -> bool:
        self.asked += 1
        if self.asked == 1:
            for each in list(self.keys("snapshots")):
                self.delete(each)
        return super().exists(key)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the task, where its file names them."""
    monkeypatch.chdir(tmp_path)
    named = [(text, {"positive": "good", "negative": "bad"}[label]) for text, label in sentences(300)]
    write_csv(tmp_path / "rows.csv", named)


@pytest.mark.usefixtures("rows")
def test_rows_that_were_collected_are_read_again(context: Context) -> None:
    first = ingest(context, a_task())
    for key in list(context.registry.store.keys("snapshots")):
        context.registry.store.delete(key)
    assert ingest(context, a_task()) == first
    assert context.has_rows(first)


@pytest.mark.usefixtures("rows")
def test_rows_that_are_collected_while_they_are_ingested_are_stored_again(context: Context, tmp_path: Path) -> None:
    store = Collected(tmp_path / "store")
    beside = Context(context.settings, Registry(context.registry.ledger, store))
    snapshot = ingest(beside, a_task())
    assert store.asked > 0
    assert context.has_rows(snapshot)
