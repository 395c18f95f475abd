"""Which tasks have new rows, found without reading them."""

from pathlib import Path

import pytest

from flows.stages.ingest import ingest
from flows.stages.watch import find_changed
from tests.flows.project import Project

NAME = "tiny-sentiment"


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
