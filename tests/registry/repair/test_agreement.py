"""What counts as agreeing with MLflow, decided from what it shows and what the ledger holds, without a server."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.records.versions import Promotion, PromptVersion
from ptpipeline.storage.keys import pointer_key
from ptpipeline.task.task import Task
from registry.card.card import VERDICT_DIGEST_TAG, VERDICT_TAG, alias_tags
from registry.ledger.projections import Projection, applied_projections
from registry.mlflow.store import MlflowStore, Model, Shown
from registry.registry import Registry
from registry.repair.models import compare_model
from registry.repair.reconcile import _agrees, _is_sound
from registry.versions.commit import Cause
from registry.versions.history import find_namings
from registry.versions.mlflow_alias import find_outdated
from registry.versions.promotion import promote

ME = Cause("me", "because")


@pytest.fixture
def head(plain: Registry, task: Task) -> Promotion:
    """Version 1 in production, version 2 beside it in the registry; the ledger notes that MLflow shows it."""
    promoted = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, promoted.digest)
    plain.ledger.record_applied("mlflow", promoted)
    return promoted


@pytest.fixture
def both(plain: Registry) -> Registry:
    """The registry with an MLflow, which is not asked."""
    return replace(plain, mlflow=MlflowStore("http://127.0.0.1:9"))


def entry(registry: Registry, task: Task, number: int, **changes: Any) -> Shown:
    """A model version that tells all that it should of that version."""
    version = registry.ledger.version(task.name, number)
    verdict = {VERDICT_TAG: "passed", VERDICT_DIGEST_TAG: str(version.verdict)}
    tags = alias_tags(find_namings(registry.ledger.history(task.name), version.digest))
    shown = Shown(str(number), version.digest, str(number), f"models:/m-{number}", tags, verdict)
    return replace(shown, **changes)


def model(registry: Registry, task: Task, **changes: Any) -> Model:
    """The task's registered model as it should be."""
    versions = {str(number): entry(registry, task, number) for number in (1, 2)}
    return replace(Model({"production": "1"}, {"production": 1}, versions), **changes)


# ---------------------------------------------------------------- what a reconcile has nothing to do for


@pytest.mark.parametrize(
    ("changes", "agrees"),
    [
        ({}, True),
        ({"aliases": {}}, False),
        ({"aliases": {"production": "2"}}, False),
        ({"aliases": {"production": "7"}}, False),  # which is gone
        ({"applied": {}}, False),
        ({"applied": {"production": 2}}, False),
    ],
)
def test_an_alias_agrees_if_mlflow_shows_the_head_by_our_write(
    both: Registry, task: Task, head: Promotion, changes: dict[str, Any], agrees: bool
) -> None:
    assert _agrees(both, head, applied_projections(both.ledger), model(both, task, **changes)) == agrees


@pytest.mark.parametrize("target", ["store", "mlflow"])
@pytest.mark.parametrize("seq", [None, 2])
def test_an_alias_agrees_if_the_ledger_notes_it_of_store_and_mlflow(
    both: Registry, task: Task, head: Promotion, target: str, seq: int | None
) -> None:
    shown = applied_projections(both.ledger)
    applied = {key: value for key, value in shown.applied.items() if key.target != target}
    noted = applied | ({} if seq is None else {Projection(target, task.name, "production"): seq})
    assert not _agrees(both, head, shown._replace(applied=noted), model(both, task))
    alone = replace(both, mlflow=None)
    assert _agrees(alone, head, shown._replace(applied=noted), Model()) == (target == "mlflow")


def test_an_alias_does_not_agree_without_its_pointer(both: Registry, task: Task, head: Promotion) -> None:
    both.store.delete(pointer_key(task.name, "production"))
    assert not _agrees(both, head, applied_projections(both.ledger), model(both, task))


# ---------------------------------------------------------------- model versions


def known(registry: Registry, task: Task) -> dict[str, PromptVersion]:
    return {version.digest: version for version in registry.ledger.versions(task.name)}


@pytest.mark.parametrize(
    ("changes", "sound"),
    [({}, True), ({"version": "2"}, False), ({"version": ""}, False), ({"digest": "f" * 64}, False)],
)
def test_tags_are_sound_if_they_agree_with_the_ledger(
    both: Registry, task: Task, head: Promotion, changes: dict[str, Any], sound: bool
) -> None:
    versions = {"1": entry(both, task, 1, **changes), "2": entry(both, task, 2)}
    assert _is_sound(known(both, task), model(both, task, versions=versions), versions["1"]) == sound


def test_of_two_with_the_same_tags_none_is_sound(both: Registry, task: Task, head: Promotion) -> None:
    versions = {number: entry(both, task, 1) for number in ("1", "2")}
    assert not _is_sound(known(both, task), model(both, task, versions=versions), versions["1"])


QUIET = {VERDICT_TAG: "passed"}


@pytest.mark.parametrize(
    ("changes", "outdated"),
    [
        ({}, False),
        ({"aliases": {}}, True),
        ({"verdict": {}}, True),
        ({"verdict": QUIET}, False),  # what is withheld has no tag of its digest
        ({"verdict": QUIET | {VERDICT_DIGEST_TAG: "f" * 64}}, True),
        ({"verdict": {VERDICT_TAG: "failed"}}, True),
        ({"aliases": {}, "digest": "f" * 64}, False),  # nobody knows that one
    ],
)
def test_a_page_is_outdated_if_it_tells_other_aliases_or_another_verdict(
    both: Registry, task: Task, head: Promotion, changes: dict[str, Any], outdated: bool
) -> None:
    versions = {"1": entry(both, task, 1, **changes), "2": entry(both, task, 2)}
    rows, shown = both.ledger.heads(task.name), model(both, task, versions=versions)
    assert [one.number for one in find_outdated(rows, shown, known(both, task))] == ["1"] * outdated


def test_a_page_of_what_was_collected_stays_as_it_is(both: Registry, task: Task, head: Promotion) -> None:
    digest = an_artifact(task, 1).digest
    collected = known(both, task)[digest].model_copy(update={"collected": True})
    shown = model(both, task, versions={"1": entry(both, task, 1, aliases={})})
    assert find_outdated(both.ledger.heads(task.name), shown, {digest: collected}) == []


# ---------------------------------------------------------------- what the doctor tells


def told(registry: Registry, task: Task, shown: Model) -> list[tuple[str, str, bool]]:
    versions = {number: an_artifact(task, number).digest for number in (1, 2)}
    return [
        (found.kind, found.mend.split("`")[0], found.safe)
        for found in compare_model(registry, task.name, versions, shown)
    ]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"aliases": {}}, [("alias", "ptp reconcile", True)]),
        ({"aliases": {"production": "2"}}, [("edit", "ptp reconcile", False)]),
        ({"aliases": {"production": "2"}, "applied": {}}, [("alias", "ptp reconcile", True)]),
        ({"aliases": {"production": "2"}, "applied": {"production": 7}}, [("alias", "ptp reconcile", True)]),
    ],
)
def test_a_difference_is_an_edit_only_where_mlflow_showed_the_head_before(
    both: Registry, task: Task, head: Promotion, changes: dict[str, Any], found: list[tuple[str, str, bool]]
) -> None:
    assert told(both, task, model(both, task, **changes)) == found


def test_a_difference_is_no_edit_while_the_ledger_is_ahead(both: Registry, task: Task, head: Promotion) -> None:
    moved = replace(both, mlflow=None)
    promote(moved, task, 2, ME)
    tags = {number: entry(both, task, int(number)) for number in ("1", "2")}
    shown = Model({"production": "1"}, {"production": 1}, tags)
    assert told(both, task, shown) == [("alias", "ptp reconcile", True)]


@pytest.mark.parametrize(
    ("alias", "number", "mend"),
    [
        ("mine", "2", "ptp promote {task}@2 --alias mine --reason ..."),
        (
            "Mine",
            "2",
            "delete the alias Mine of {task} in MLflow; an alias is of lower-case letters, digits and dashes",
        ),
        (
            "latest",
            "2",
            "delete the alias latest of {task} in MLflow; an alias is of lower-case letters, digits and dashes",
        ),
        (
            "mine",
            "3",
            "if the ledger was lost, ptp doctor --rebuild-ledger; else delete the alias mine of {task} in MLflow",
        ),
        (
            "mine",
            "7",
            "if the ledger was lost, ptp doctor --rebuild-ledger; else delete the alias mine of {task} in MLflow",
        ),
    ],
)
def test_an_alias_that_the_ledger_does_not_know_is_a_persons_to_decide(
    both: Registry, task: Task, head: Promotion, alias: str, number: str, mend: str
) -> None:
    shown = model(both, task)
    shown.versions["3"] = Shown("3", "", "", "models:/m-3")
    shown.aliases[alias] = number
    assert told(both, task, shown) == [("alias", mend.format(task=task.name), False)]


def test_a_version_that_mlflow_does_not_show_is_told(both: Registry, task: Task, head: Promotion) -> None:
    versions = {"1": entry(both, task, 1)}
    assert told(both, task, model(both, task, versions=versions)) == [("model", "ptp reconcile", True)]
