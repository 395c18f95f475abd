"""Fixtures of the chain's tests: projects that ran once and are copied from then on, and figures without rendering."""

from collections.abc import Iterator
from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks.fixtures.prompts import PNG
from tests.flows.project import Project

NAME = "tiny-sentiment"


@pytest.fixture(scope="package", autouse=True)
def _quick_figures() -> Iterator[None]:
    """Figures are drawn and saved as one pixel: rendering them is half of a night of a tiny model, and looked at in
    tests/evaluation/test_plots.py.
    """

    def savefig(figure: Figure, file: Any, **_: object) -> None:
        file.write(PNG)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture(scope="session")
def first_night(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose one task ran once: version 1 is in production. Copy it, and leave it as it is."""
    project = Project(tmp_path_factory.mktemp("first-night"), (NAME,))
    assert project.run().status == "promoted"
    return project


@pytest.fixture
def promoted(project: Project, first_night: Project) -> None:
    """The test's project ran once: version 1 is in production."""
    project.lines += first_night.copy(project.folder).lines
