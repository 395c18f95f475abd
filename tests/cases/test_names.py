"""Names that people give to labels, slices and files: scripts of the world, markup, paths."""

import html
import re
import warnings
from pathlib import Path

import pytest

from ptpipeline.errors import DataError
from ptpipeline.evaluation.lettering import write
from registry.card.page import render_page
from registry.versions.publish import load_card
from tests.cases.run import Run

LABELS = {
    "cjk": ["悪い", "良い"],
    "dollar": ["<$50", "$_$"],
    "html": ['a&b "q" | c', "<script>alert(1)</script>"],
    "slash": ["../c", "a/b"],
}
TOLD = {
    "longpath": r"data\.source\.path: 'x{99,}\.\.\.: cannot be read \(File name too long\); name a file",
    "nonefound": r"data\.source\.path: ~nosuchuser/x\.csv: no such file",
    "noperm": r"data\.source\.path: somewhere/ro700/x\.csv: no such file",
}


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run("92-names", tmp_path, monkeypatch)


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_any_letters_are_trained_plotted_and_written_readably(name: str, case: Run) -> None:
    outside = set(case.folder.parent.rglob("*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # matplotlib warns of each letter that it draws as a box
        case.run(name)
        case.case.change(f"tasks/{name}.yaml", "learning_rate: 0.05", "learning_rate: 0.04")
        case.case.change(f"tasks/{name}.yaml", "slices: warn", "slices: {policy: warn, min_rows: 9}")
        case.run(name)  # it has a champion, so that slices are compared and drawn
    plots = {path.name.partition("-")[0] for path in case.folder.rglob("store/prompts/*/*/plots/*.png")}
    assert {"confusion", "slices"} <= plots
    assert {path for path in set(case.folder.parent.rglob("*")) - outside if case.folder not in path.parents} == set()
    registry = case.open().registry
    version = registry.ledger.version(name, 2)
    page = render_page(load_card(registry, name, version.digest), version).decode()
    assert [label for label in LABELS[name] if label not in html.unescape(re.sub("<[^>]*>", " ", page))] == []
    assert "<script>alert" not in page


def test_labels_in_japanese_are_letters_or_numbers_with_a_key() -> None:
    assert write(LABELS["cjk"]).names in (LABELS["cjk"], ["1.", "2."])


@pytest.mark.parametrize("name", TOLD)
def test_a_path_at_which_nothing_stands_is_told_in_one_sentence(name: str, case: Run) -> None:
    with pytest.raises(DataError, match=TOLD[name]) as raised:
        case.run(name)
    assert "\n" not in str(raised.value)


def test_a_file_at_such_a_path_is_read(case: Run) -> None:
    folder = case.folder / "somewhere" / "ro700"
    folder.mkdir(parents=True)
    (case.folder / "noperm.csv").rename(folder / "x.csv")
    assert case.run("noperm").rows == 240
