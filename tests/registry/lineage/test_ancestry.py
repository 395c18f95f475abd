"""The rules of descent, one by one: what is a part, what is shared, which snapshots are needed, what stays unknown."""

from typing import Any

import pytest

from benchmarks.fixtures.prompts import a_request, a_task, an_artifact, published
from ptpipeline.prompts.artifact import Artifact, write_artifact
from ptpipeline.records.base import digest_of
from ptpipeline.records.prompts import Generation, Members, PromptManifest
from ptpipeline.task.task import Task
from registry.ledger.usage import Name, SnapshotLink, Training
from registry.lineage import ancestry
from registry.lineage.ancestry import (
    combination,
    is_shared,
    parts_of,
    read_manifests,
    relation_of,
    snapshots_of,
    source_snapshots_of,
    sources_in,
    stored_names,
    with_parts,
)
from registry.lineage.descent import inherited_rows, training_rows
from registry.registry import Registry

A, B, C, D = (letter * 64 for letter in "abcd")


def manifest(**changes: Any) -> PromptManifest:
    return an_artifact(a_task(), 0).manifest.model_copy(update=changes)


def test_parents_and_members_are_parts() -> None:
    assert parts_of(manifest(parents=[A], members=Members(digests=[B, C], combine="vote"))) == [A, B, C]


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"method": "multitask", "labels": {}}, True),
        ({"method": "multitask"}, False),
        ({"method": "prompt", "labels": {}}, False),
        ({"method": "multitask", "labels": {}, "generate": Generation(max_new_tokens=4)}, False),
    ],
)
def test_a_prompt_that_answers_for_no_task_is_shared(changes: dict[str, Any], shared: bool) -> None:
    assert is_shared(manifest(**changes)) == shared


@pytest.mark.parametrize(
    ("changes", "relation"),
    [
        ({}, "start"),
        ({"labels": {}}, "start"),
        ({"method": "multitask"}, "shared prompt"),
        ({"method": "multitask", "labels": {}}, "teacher"),
    ],
)
def test_a_parent_is_what_the_method_makes_of_it(changes: dict[str, Any], relation: str) -> None:
    assert relation_of(manifest(**changes)) == relation


def test_parts_are_followed_to_the_end_and_across_tasks() -> None:
    chain = {
        Name("mood", A): manifest(parents=[B]),
        Name("topic", B): manifest(parents=[C]),
        Name("tone", C): manifest(),
    }
    aside = {Name("mood", D): manifest()}
    assert with_parts({Name("mood", A)}, chain | aside) == set(chain)


def test_a_circle_of_parts_ends() -> None:
    circle = {Name("mood", A): manifest(parents=[B]), Name("mood", B): manifest(parents=[A])}
    assert with_parts({Name("mood", A)}, circle) == set(circle)


# ---------------------------------------------------------------- what is stored


def test_a_manifest_at_another_place_is_none(plain: Registry, task: Task) -> None:
    made = an_artifact(task, 1)
    write_artifact(plain.store, made)
    body = plain.store.read(f"prompts/{task.name}/{made.digest}/manifest.json").body
    for folder in (f"prompts/another/{made.digest}", f"prompts/{task.name}/{A}"):
        plain.store.create(f"{folder}/manifest.json", body)
    names = [Name(task.name, made.digest), Name("another", made.digest), Name(task.name, A), Name(task.name, B)]
    found = read_manifests(plain.store, names)
    assert found == {names[0]: made.manifest, names[1]: None, names[2]: None}


def test_only_whole_prompts_have_a_name(plain: Registry, task: Task) -> None:
    for key in (f"{A}/prompt.safetensors", f"{B}/manifest.json", f"{C}/records/manifest.json", "mine/manifest.json"):
        plain.store.create(f"prompts/{task.name}/{key}", b"{}")
    assert stored_names(plain.store, "prompts") == [Name(task.name, B)]


# ---------------------------------------------------------------- snapshots


def test_a_prompt_needs_what_its_manifest_and_the_ledger_name() -> None:
    one, two = Name("mood", A), Name("mood", B)
    links = [SnapshotLink(one, C), SnapshotLink(two, D), SnapshotLink(Name("topic", A), D)]
    assert snapshots_of({one}, {one: manifest(snapshot=B), two: manifest(snapshot=A)}, links) == {
        Name("mood", B),
        Name("mood", C),
    }


def test_a_combination_is_one_of_each_source_in_order() -> None:
    sources = [[Name("mood", A), Name("mood", B)], [Name("topic", C)]]
    assert combination(digest_of([B, C]), sources) == [Name("mood", B), Name("topic", C)]
    assert combination(digest_of([C, B]), sources) is None


@pytest.mark.parametrize(("limit", "tried"), [(2, True), (1, False)])
def test_as_many_combinations_as_allowed_are_tried(monkeypatch: pytest.MonkeyPatch, limit: int, tried: bool) -> None:
    monkeypatch.setattr(ancestry, "MAX_COMBINATIONS", limit)
    sources = [[Name("mood", A), Name("mood", B)], [Name("topic", C)]]
    assert (combination(digest_of([A, C]), sources) is not None) == tried


def a_shared_training(snapshot: str) -> Training:
    return Training(Name("shared", D), snapshot, ["shared/mood", "shared/teacher of topic"], 10)


STORED = [Name("mood", A), Name("mood", B), Name("topic", C), Name("tone", C)]


def test_a_shared_prompt_needs_the_snapshots_that_make_its_own() -> None:
    training = a_shared_training(digest_of([B, C]))
    assert source_snapshots_of({training.prompt}, [training], STORED) == {Name("mood", B), Name("topic", C)}
    assert source_snapshots_of(set(), [training], STORED) == set()


def test_a_shared_prompt_with_too_many_combinations_needs_all_of_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ancestry, "MAX_COMBINATIONS", 1)
    training = a_shared_training(digest_of([B, C]))
    assert source_snapshots_of({training.prompt}, [training], STORED) == set(STORED) - {Name("tone", C)}


def test_a_prompt_with_a_snapshot_of_its_own_needs_no_others() -> None:
    training = a_shared_training(digest_of([B, C]))
    own = Name("shared", training.snapshot)
    assert source_snapshots_of({training.prompt}, [training], [*STORED, own]) == set()


def test_the_sources_of_a_shared_prompt_are_named_by_its_trials() -> None:
    assert sources_in("shared", ["shared/mood", "shared/teacher of topic", "other/tone", "lr 0.1"]) == ["mood", "topic"]


# ---------------------------------------------------------------- rows


def test_of_an_imported_prompt_no_rows_are_known(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    imported = a_request(task, 1).tuned.model_copy(update={"steps": 0})
    plain.ledger.save_tuned(imported)
    assert training_rows(plain, task.name, imported.digest) == []


def test_ancestors_that_form_a_circle_are_read_once(plain: Registry, task: Task) -> None:
    """No training makes one, and a forged manifest must not keep a night from ending."""
    made = an_artifact(task, 1)
    child = Artifact(made.manifest.model_copy(update={"parents": [A, A]}), made.tensors)
    write_artifact(plain.store, child)
    assert list(inherited_rows(plain, task.name, child.digest)) == []
