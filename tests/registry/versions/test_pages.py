"""The page of a version in the store: one for each verdict, with what belongs to it, and collected with the version."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_request, a_task, an_artifact, published
from ptpipeline.errors import ServiceUnavailable
from ptpipeline.evaluation.mistakes import Mistake, Mistakes
from ptpipeline.prompts.interpretation import Pulled, Wayward
from ptpipeline.records.versions import PromptVersion
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import prompt_prefix
from registry.card.card import Card
from registry.card.page import render_page
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.versions.publish import attach, load_card, register, stage, withhold_texts
from tests.registry.card.test_page import HOSTILE, Parsed, card, pair

__all__ = ["card"]  # a fixture


def pages(registry: Registry, digest: str) -> list[str]:
    return [key for key in registry.store.keys(prompt_prefix("mood", digest)) if key.endswith(".html")]


def test_a_version_has_its_page_in_the_store(plain: Registry) -> None:
    task = a_task()
    published(plain, task, 1)
    digest = an_artifact(task, 1).digest
    [key] = pages(plain, digest)
    assert plain.store.read(key).body == render_page(load_card(plain, "mood", digest), plain.ledger.version("mood", 1))
    published(plain, task, 1)
    assert pages(plain, digest) == [key]


def test_a_new_verdict_has_a_page_of_its_own(plain: Registry) -> None:
    task = a_task()
    published(plain, task, 1, kind="failed")
    published(plain, task, 1)
    told = [Parsed(plain.store.read(key).body).text for key in pages(plain, an_artifact(task, 1).digest)]
    assert sorted("passed the gate" in text for text in told) == [False, True]


def test_neighbours_are_kept_with_the_version(plain: Registry, card: Card) -> None:
    task = a_task()
    stage(plain.ledger, plain.store, an_artifact(task, 1))
    register(plain, replace(a_request(task, 1), neighbours=card.provenance.neighbours))
    register(plain, a_request(task, 1))
    assert load_card(plain, "mood", an_artifact(task, 1).digest).provenance.neighbours == card.provenance.neighbours


def test_an_experiment_is_told_on_the_page_and_stays_there(plain: Registry) -> None:
    task, digest = a_task(), an_artifact(a_task(), 1).digest
    published(plain, task, 1)
    plainly = Pulled(gamma=0, landed={"cosine": 0.0, "dot": 0.0, "euclidean": 0.0}, distance=3.5, dev=0.8, test=0.8)
    pulled = Pulled(
        gamma=0.01,
        landed={"cosine": 0.75, "dot": 0.5, "euclidean": 1.0},
        distance=0.25,
        dev=0.7,
        test=0.7,
        compared=pair(-0.1),
    )
    found = Wayward(
        task="mood",
        text=f"a tale {HOSTILE}",
        tokens=["a", "▁tale"],
        metric="accuracy",
        steps=10,
        test_rows=20,
        text_test=0.5,
        text_landed={"cosine": 1.0, "dot": 1.0, "euclidean": 1.0},
        plain=plainly,
        pulled=[pulled],
    )
    key = attach(plain, digest, found)
    published(plain, task, 1)
    assert attach(plain, digest, found) == key
    text = Parsed(plain.store.read(key).body).text
    assert f"a tale {HOSTILE}" in text
    assert "0.01 75% 50% 100% 0.25 0.7000 0.7000 -0.1000 (-0.2000 to +0.0000)" in text
    assert examine(plain) == []


def test_a_collection_takes_page_and_neighbours_with_the_version(plain: Registry, card: Card) -> None:
    task = a_task()
    stage(plain.ledger, plain.store, an_artifact(task, 1))
    register(plain, replace(a_request(task, 1), neighbours=card.provenance.neighbours))
    published(plain, task, 2)
    collect(plain, Retention(candidates=1, grace=timedelta(0)), apply=True)
    assert list(plain.store.keys(prompt_prefix("mood", an_artifact(task, 1).digest))) == []
    assert pages(plain, an_artifact(task, 2).digest)


class Noting(MlflowStore):
    """An MLflow that notes the texts of rows on the pages that it is told."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")
        self.told: list[Mistakes | None] = []

    def describe(self, card: Card, version: PromptVersion, number: str | None = None) -> None:
        self.told.append(card.provenance.mistakes)


def test_texts_that_are_withheld_leave_the_page_in_mlflow_too(plain: Registry) -> None:
    task, mlflow = a_task(), Noting()
    worst = Mistake(text="A secret.", wanted="good", answered="bad", figure=0.9)
    stage(plain.ledger, plain.store, an_artifact(task, 1))
    register(
        plain, replace(a_request(task, 1), mistakes=Mistakes(shown=[worst], wrong=1, rows=20, figure="probability"))
    )
    withhold_texts(replace(plain, mlflow=mlflow), task.name)
    assert mlflow.told == [None]


class Pageless(FolderStore):
    """A folder that takes no pages at the moment."""

    def create(self, key: str, body: bytes) -> None:
        if key.endswith(".html"):
            raise ServiceUnavailable("the store does not answer")
        super().create(key, body)


def test_texts_are_forgotten_once_no_page_shows_them_and_not_before(plain: Registry) -> None:
    """Else a run that was killed in between would leave them on the page for ever."""
    task = a_task()
    worst = Mistake(text="A secret.", wanted="good", answered="bad", figure=0.9)
    stage(plain.ledger, plain.store, an_artifact(task, 1))
    register(
        plain, replace(a_request(task, 1), mistakes=Mistakes(shown=[worst], wrong=1, rows=20, figure="probability"))
    )
    away = Registry(plain.ledger, Pageless(Path(plain.store.url.removeprefix("file://"))))
    with pytest.raises(ServiceUnavailable):
        withhold_texts(away, task.name)
    assert len(plain.ledger.publications_with_texts(task.name)) == 1
    withhold_texts(plain, task.name)
    assert plain.ledger.publications_with_texts(task.name) == []
