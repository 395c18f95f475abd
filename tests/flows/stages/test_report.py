"""The report of a version that a run made: with its plots and nearest words, judged again with it, and without any
row's text.
"""

import pytest

from flows.stages.promote import move
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.storage.keys import prompt_prefix
from registry.card.page import render_page
from registry.versions.commit import Cause
from registry.versions.publish import load_card
from tests.flows.project import Project
from tests.tiny import sentences


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two versions, none of them promoted."""
    made = Project(tmp_path_factory.mktemp("report"), ("tiny-sentiment",))
    made.edit("promote: auto", "promote: manual")
    made.run()
    made.edit("learning_rate: 0.05", "learning_rate: 0.04")
    made.run()
    return made


def shown(project: Project, number: int) -> str:
    """The page of that version as it would be written now."""
    registry = project.stages.registry
    version = registry.ledger.version("tiny-sentiment", number)
    return render_page(load_card(registry, version.task, version.digest), version).decode()


def stored(project: Project, number: int) -> list[str]:
    registry = project.stages.registry
    digest = registry.ledger.version("tiny-sentiment", number).digest
    return [
        registry.store.read(key).body.decode()
        for key in registry.store.keys(prompt_prefix("tiny-sentiment", digest))
        if key.endswith(".html")
    ]


def test_a_run_stores_the_report_with_plots_and_words(project: Project) -> None:
    written = shown(project, 2)
    assert stored(project, 2) == [written]
    for words in (
        "against champion and baselines",
        "how right it is",
        "the training",
        "nearest words",
        "hint, never proof",
        "zero-shot",
        "majority",
    ):
        assert words in written.lower()


def test_no_text_of_a_row_is_in_it(project: Project) -> None:
    found = shown(project, 1)
    assert [text for text, _ in sentences(240) if text in found] == []


def test_a_version_that_is_judged_again_has_a_new_report(project: Project) -> None:
    move(project.stages, "tiny-sentiment", PRODUCTION, 1, Cause("ann", "the first"))
    move(project.stages, "tiny-sentiment", PRODUCTION, 2, Cause("ann", "another", override=True))
    assert shown(project, 2) in stored(project, 2)
    assert len(stored(project, 2)) == 2
    assert "The champion is version 1." in shown(project, 2)


def test_unchanged_nights_store_no_second_report(project: Project) -> None:
    project.run()  # the first that judges it as the champion
    before = stored(project, 2)
    project.run()
    assert stored(project, 2) == before
    assert "It is the champion itself." in shown(project, 2)


def test_a_task_may_let_the_texts_of_wrong_answers_in(project: Project) -> None:
    """They stand in the page and beside the prompt, not in the ledger; what is switched off is not shown any more."""
    project.edit("promote: manual", "promote: manual\ntexts_in_reports: true")
    project.edit('init: {text: " yes"}, steps: 10', "steps: 2")
    number = project.run().version
    texts, written = [text for text, _ in sentences(240)], shown(project, number)
    assert [text for text in texts if text in written]
    assert "Rows that it gets wrong" in written
    assert written in stored(project, number)
    ledger = (project.folder / "ledger.db").read_bytes()
    assert [text for text in texts if text.encode() in ledger] == []
    project.edit("texts_in_reports: true", "texts_in_reports: false")
    project.edit("steps: 2", "steps: 3")
    assert project.run().version == number + 1
    written = shown(project, number)
    assert [text for text in texts if text in written] == []


def test_texts_that_somebody_deleted_are_shown_no_more(project: Project) -> None:
    project.edit("texts_in_reports: false", "texts_in_reports: true")
    number, store = project.run().version, project.stages.registry.store
    assert "Rows that it gets wrong" in shown(project, number)
    for key in [key for key in store.keys("prompts/tiny-sentiment") if "/mistakes-" in key]:
        store.delete(key)
    assert "Rows that it gets wrong" not in shown(project, number)
