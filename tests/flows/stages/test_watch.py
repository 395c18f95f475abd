"""Which tasks have new rows, found without reading them."""

from pathlib import Path

import pytest

import flows
from flows.stages.ingest import find_source_key, ingest
from flows.stages.watch import find_changed
from tests.flows.project import Project

NAME = "tiny-sentiment"
FLOWS = Path(flows.__file__).parent


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path, (NAME,))
    project.edit("promote: auto", "promote: auto\nwatch: true")
    return project


def test_a_task_is_changed_until_its_rows_are_ingested_and_again_with_new_ones(project: Project) -> None:
    first = find_changed(project.stages, project.declared())
    assert list(first) == [NAME]
    ingest(project.stages, project.task())
    assert find_changed(project.stages, project.declared()) == {}
    rows = Path(str(project.task().data.source.path))  # type: ignore[union-attr]
    rows.write_text(rows.read_text() + "the film was lovely and new,positive\n")
    second = find_changed(project.stages, project.declared())
    assert list(second) == [NAME]
    assert second != first


def test_a_task_that_is_not_watched_is_left_alone(project: Project) -> None:
    project.edit("watch: true", "watch: false")
    assert find_changed(project.stages, project.declared()) == {}


def test_a_source_that_cannot_be_looked_at_is_told_and_skipped(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    Path(str(project.task().data.source.path)).unlink()  # type: ignore[union-attr]
    assert find_changed(project.stages, project.declared()) == {}
    assert f"{NAME}: its source could not be looked at" in caplog.text


def test_the_key_of_a_source_counts_tokens_as_its_ingest_did(project: Project) -> None:
    project.edit("  label: label\n", "  label: label\n  too_long: drop\n")
    snapshot = ingest(project.stages, project.task())
    key = find_source_key(project.settings, project.task())
    assert project.stages.registry.ledger.snapshot_for(NAME, key) == snapshot


def test_flows_find_the_key_of_a_source_in_one_place() -> None:
    named = {path.name for path in FLOWS.rglob("*.py") if "import source_key" in path.read_text()}
    assert named == {"ingest.py"}
