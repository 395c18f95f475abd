"""Fixtures of the chain's tests: projects that ran once and are copied from then on, and reports made quickly."""

from collections.abc import Iterator
from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks.fixtures.prompts import PNG
from ptpipeline.evaluation.probes import latency
from tests.flows.project import Project

NAME = "tiny-sentiment"


@pytest.fixture(scope="package", autouse=True)
def _quick_reports() -> Iterator[None]:
    """Figures are drawn and saved as one pixel, and few requests are timed: rendering is half of a night of a tiny
    model. tests/evaluation looks at the figures (test_plots.py) and times all requests (probes/test_figures.py).
    """

    def savefig(figure: Figure, file: Any, **_: object) -> None:
        file.write(PNG)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        patch.setattr(latency, "REQUESTS", 4)
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
