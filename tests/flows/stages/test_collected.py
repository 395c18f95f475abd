"""A run behind a garbage collection, and beside one: it finds its bytes or trains them anew."""

from datetime import timedelta
from pathlib import Path

import pytest

from flows.stages.chain import run_task
from flows.stages.ingest import ingest
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.repair.doctor import examine
from tests.flows.project import Project

LAST = Retention(candidates=1, grace=timedelta(0))


@pytest.fixture(scope="module")
def three_nights(first_night: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A champion, and two candidates behind it."""
    made = first_night.copy(tmp_path_factory.mktemp("three-nights"))
    made.edit("promote: auto", "promote: manual")
    for rate in ("0.04", "0.03"):
        made.edit(f"learning_rate: {'0.05' if rate == '0.04' else '0.04'}", f"learning_rate: {rate}")
        made.run()
    return made


@pytest.fixture
def project(three_nights: Project, tmp_path: Path) -> Project:
    return three_nights.copy(tmp_path)


def test_a_collected_candidate_is_trained_and_compared_anew(project: Project) -> None:
    registry = project.stages.registry
    assert [item.version for item in collect(registry, LAST, apply=True)] == [2]
    assert examine(registry) == []
    project.run()
    assert not project.trained
    project.edit("learning_rate: 0.03", "learning_rate: 0.04")
    outcome = project.run()
    assert project.trained
    assert outcome.version == 2
    assert any(" champion: accuracy " in line for line in project.lines)
    assert [item.version for item in collect(registry, LAST)] == []
    assert examine(registry) == []


def test_the_rows_of_a_source_that_is_again_as_it_was_stay(project: Project) -> None:
    stages = project.stages
    project.edit("test: 0.25", "test: 0.2")
    first = ingest(stages, project.task())
    project.edit("test: 0.2", "test: 0.3")
    other = ingest(stages, project.task())
    project.edit("test: 0.3", "test: 0.2")
    assert ingest(stages, project.task()) == first
    collect(stages.registry, LAST, apply=True)
    assert (stages.has_rows(first), stages.has_rows(other)) == (True, False)


def test_a_run_beside_the_collection_of_its_candidate_ends_whole(project: Project) -> None:
    project.edit("learning_rate: 0.03", "learning_rate: 0.04")
    stages, collected = project.stages, []

    def report(line: str) -> None:
        if "was measured on these" in line:  # trained long ago, and not registered yet
            collected.append(collect(stages.registry, LAST, apply=True))

    stages.report = report
    outcome = run_task(stages, project.task())
    assert collected[0] == []
    assert outcome.version == 2
    assert examine(stages.registry) == []
