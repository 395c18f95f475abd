"""Files beside prompts: what is gone is told and forgotten, and pages are written as they are without it."""

import pytest

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.storage.keys import companion_key, page_key
from ptpipeline.task.task import Task
from registry.card.page import render_page
from registry.ledger.results import Publication
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.versions.publish import load_card


def publication_of(registry: Registry, task: Task) -> Publication:
    found = registry.ledger.publication(task.name, an_artifact(task, 1).digest)
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "forgotten"), [("neighbours", None), ("wayward", ())])
def test_a_record_that_is_gone_is_told_and_forgotten(plain: Registry, task: Task, name: str, forgotten: object) -> None:
    published(plain, task, 1)
    key = companion_key(task.name, an_artifact(task, 1).digest, name, b"gone")
    known = publication_of(plain, task).model_copy(update={name: key if name == "neighbours" else (key,)})
    plain.ledger.save_publication(known)
    found = examine(plain)
    assert [(one.kind, one.what, one.found, one.safe) for one in found] == [
        ("file", f"object {key}", "no such object", True)
    ]
    fix(plain, {}, found)
    assert getattr(publication_of(plain, task), name) == forgotten
    assert examine(plain) == []


def test_texts_that_a_person_deleted_are_not_missed(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    key = companion_key(task.name, an_artifact(task, 1).digest, "mistakes", b"gone")
    plain.ledger.save_publication(publication_of(plain, task).model_copy(update={"mistakes": key}))
    assert examine(plain) == []


def test_a_page_is_written_again_without_the_plot_that_was_altered(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    digest = an_artifact(task, 1).digest
    (plot,) = publication_of(plain, task).plots.values()
    plain.store.replace(plot, b"another image", plain.store.read(plot).etag)
    fix(plain, {}, examine(plain))
    page = render_page(load_card(plain, task.name, digest), plain.ledger.version(task.name, 1))
    assert b"data:image/png" not in page
    assert plain.store.read(page_key(task.name, digest, page)).body == page
    assert examine(plain) == []
