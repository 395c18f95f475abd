"""What counts as agreeing with MLflow, decided from what it shows and what the ledger holds, without a server."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.records.versions import Promotion, PromptVersion
from ptpipeline.storage.keys import pointer_key
from ptpipeline.task.task import Task
from registry.card.card import VERDICT_DIGEST_TAG, VERDICT_TAG, Card, alias_tags
from registry.ledger.projections import Projection, applied_projections, sight
from registry.ledger.tombstone import Tombstone
from registry.mlflow.store import MlflowStore, Model, Shown
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.models import compare_model
from registry.repair.reconcile import _agrees, _is_sound, _restore_versions, _versions, reconcile
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


class Healing(MlflowStore):
    """An MLflow that shows these models one after the other."""

    def __init__(self, *shown: Model) -> None:
        super().__init__("http://127.0.0.1:9")
        self.shown = [*shown]

    def models(self, task: str | None = None) -> dict[str, Model]:
        return {str(task): self.shown.pop(0)}


@pytest.mark.parametrize(("again", "kinds"), [({}, []), ({"versions": {}}, ["model", "model", "edit"])])
def test_what_differs_in_mlflow_is_looked_at_again(
    plain: Registry, task: Task, head: Promotion, again: dict[str, Any], kinds: list[str]
) -> None:
    mlflow = Healing(model(plain, task, versions={}), model(plain, task, **again))
    found = examine(replace(plain, mlflow=mlflow), task.name)
    assert [difference.kind for difference in found] == kinds


# ---------------------------------------------------------------- what a reconcile writes to MLflow


class Noting(MlflowStore):
    """An MLflow that shows a model, and notes what it is told of versions."""

    def __init__(self, shown: Model, sources: dict[str, str] | None = None) -> None:
        super().__init__("http://127.0.0.1:9")
        self.shown, self.sources, self.described = shown, sources or {}, list[tuple[int, str | None]]()

    def describe(self, card: Card, version: PromptVersion, number: str | None = None) -> None:
        assert card.digest == version.digest
        self.described.append((version.number, number))

    def digest_of_source(self, task: str, source: str, digests: list[str]) -> str | None:
        return self.sources.get(source)


def written(registry: Registry, task: Task, mlflow: Noting) -> list[tuple[int, str | None]]:
    """The versions that a reconcile describes, and under which numbers."""
    versions = _versions(registry, task.name)[task.name]
    actions = _restore_versions(registry, mlflow, versions, mlflow.shown)
    assert len(actions) == len(mlflow.described)
    return mlflow.described


def test_versions_that_mlflow_lost_are_registered_in_the_ledgers_order(
    plain: Registry, task: Task, head: Promotion
) -> None:
    assert written(plain, task, Noting(Model())) == [(1, None), (2, None)]
    assert written(plain, task, Noting(model(plain, task))) == []


@pytest.mark.parametrize("changes", [{"version": "7"}, {"version": ""}, {"digest": "f" * 64}, {"digest": ""}])
def test_tags_that_somebody_altered_are_restored_by_the_source(
    plain: Registry, task: Task, head: Promotion, changes: dict[str, str]
) -> None:
    versions = {"1": entry(plain, task, 1, **changes), "2": entry(plain, task, 2)}
    sources = {"models:/m-1": an_artifact(task, 1).digest}
    assert written(plain, task, Noting(model(plain, task, versions=versions), sources=sources)) == [(1, "1")]


def test_a_number_that_names_another_prompt_by_its_tag_is_known_by_its_source(
    plain: Registry, task: Task, head: Promotion
) -> None:
    """Somebody exchanged the tags of two versions."""
    first, second = entry(plain, task, 1), entry(plain, task, 2)
    versions = {
        "1": replace(first, digest=second.digest),
        "2": replace(second, digest=first.digest),
    }
    sources = {"models:/m-1": first.digest, "models:/m-2": second.digest}
    found = written(plain, task, Noting(model(plain, task, versions=versions), sources=sources))
    assert found == [(1, "1"), (2, "2")]


def test_what_was_collected_is_neither_registered_again_nor_described(
    plain: Registry, task: Task, head: Promotion
) -> None:
    grave = Tombstone(plain.ledger.database, task.name, an_artifact(task, 2).digest)
    assert grave.bury(lambda _: False)
    assert written(plain, task, Noting(Model())) == [(1, None)]
    versions = {"1": entry(plain, task, 1), "2": entry(plain, task, 2, version="7")}
    sources = {"models:/m-2": an_artifact(task, 2).digest}
    assert written(plain, task, Noting(model(plain, task, versions=versions), sources=sources)) == []


def test_what_was_seen_once_is_forgotten_as_soon_as_mlflow_agrees_again(
    plain: Registry, task: Task, head: Promotion
) -> None:
    """Else the next edit to that version would be judged at its first sight."""
    sight(plain.ledger, head, an_artifact(task, 2).digest)
    assert applied_projections(plain.ledger).sighted
    assert reconcile(replace(plain, mlflow=Healing(model(plain, task))), {}, task.name) == []
    assert not applied_projections(plain.ledger).sighted


def test_a_store_is_brought_up_to_date_without_mlflow(both: Registry, task: Task, head: Promotion) -> None:
    key = pointer_key(task.name, "production")
    both.store.delete(key)
    actions = reconcile(both, {task.name: task})
    assert [(action.task, action.done) for action in actions] == [(task.name, True), ("all tasks", False)]
    assert both.store.exists(key)
