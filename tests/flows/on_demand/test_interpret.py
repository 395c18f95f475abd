"""The words near a version's virtual tokens, and the experiment that says what they are worth, on the command line."""

from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_task
from flows.cli import main
from flows.on_demand.interpret import rank_neighbours
from flows.stages.context import Context
from ptpipeline.errors import DataError
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from tests.flows.project import Project
from tests.registry.repair.test_second_look import an_ensemble


@pytest.fixture
def project(first_night: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = first_night.copy(tmp_path)
    settings = made.settings
    for name in ("home", "tasks", "store", "ledger", "dtype"):
        monkeypatch.setenv(f"PTP_{name.upper()}", str(getattr(settings, name)))
    return made


def ptp(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_neighbours_come_with_their_warning(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = ptp(capsys, "neighbours", "tiny-sentiment@1")
    assert len(out.splitlines()) == 1 + 4  # a line per virtual token
    assert "A hint, never proof" in err


def test_an_experiment_is_told_on_the_versions_page(
    project: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, err = ptp(capsys, "neighbours", "tiny-sentiment@1", "--wayward", "the story was very dull")
    assert [float(line.split()[0]) for line in out.splitlines()[1:]] == [0, 0.1, 1, 10]
    assert "A hint, never proof" in err
    ptp(capsys, "report", "tiny-sentiment@1", "--to", str(tmp_path / "page.html"))
    assert "the story was very dull" in (tmp_path / "page.html").read_text()


def test_an_ensemble_has_no_neighbours_of_its_own(tmp_path: Path) -> None:
    registry = Registry(Ledger(f"sqlite:///{tmp_path}/ledger.db"), FolderStore(tmp_path / "store"))
    an_ensemble(registry, a_task("mood"))
    with pytest.raises(DataError, match=r"mood@1 is an ensemble .* its members have neighbours of their own"):
        rank_neighbours(Context(Settings(home=tmp_path), registry), "mood", 1)
