"""Files beside prompts: what is gone is told and forgotten, and pages are written as they are without it."""

from dataclasses import replace

import pytest

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.storage.addresses import is_page
from ptpipeline.storage.keys import companion_key, page_key, prompt_prefix, signatures_prefix
from ptpipeline.task.task import Task
from registry.card.page import render_page
from registry.ledger.results import Publication
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.versions.publish import load_card, write_page
from registry.versions.sign import sign_task
from tests.registry.signed import TASK, overwrite


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


# ---------------------------------------------------------------- signatures of pages


def pages_of(registry: Registry, number: int) -> list[str]:
    """The pages of a version, the newest last."""
    stored = registry.store.list_objects(prompt_prefix(TASK.name, an_artifact(TASK, number).digest))
    return [item.key for item in sorted(stored, key=lambda item: item.modified) if is_page(item.key)]


def write_another_page(registry: Registry, number: int) -> None:
    version = registry.ledger.version(TASK.name, number)
    write_page(registry, replace(load_card(registry, TASK.name, version.digest), store="another store"), version)


def unsign(registry: Registry, *keys: str) -> None:
    for key in keys:
        for signature in [*registry.store.keys(signatures_prefix(key))]:
            registry.store.delete(signature)


def test_a_version_of_which_nobody_signed_a_page_is_told(keyed: Registry) -> None:
    pages = pages_of(keyed, 2)
    unsign(keyed, *pages)
    assert [(found.what, found.mend) for found in examine(keyed)] == [(f"object {pages[-1]}", f"ptp sign {TASK.name}")]
    assert all(action.done for action in sign_task(keyed, keyed.store, TASK.name))  # type: ignore[arg-type]
    assert examine(keyed) == []


def test_a_page_that_was_replaced_before_there_was_a_key_is_not_told(keyed: Registry) -> None:
    write_another_page(keyed, 2)
    older, *_ = pages_of(keyed, 2)
    unsign(keyed, older)
    assert examine(keyed) == []


@pytest.mark.parametrize("damage", [b"", b"no signature"])
def test_a_damaged_signature_of_a_page_that_was_replaced_is_told(keyed: Registry, damage: bytes) -> None:
    write_another_page(keyed, 2)
    older, *_ = pages_of(keyed, 2)
    [signature] = keyed.store.keys(signatures_prefix(older))
    overwrite(keyed.store, signature, damage)
    assert [found.what for found in examine(keyed)] == [f"object {older}"]
