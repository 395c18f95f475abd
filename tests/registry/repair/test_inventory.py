"""Both sides of a comparison: what counts as ahead, which parts a prompt needs here, whose results are looked at."""

from datetime import timedelta
from typing import Any

import pytest

from benchmarks.fixtures.prompts import a_report, a_task, an_artifact, published
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.prompts import Members
from ptpipeline.records.versions import Pointer
from ptpipeline.storage.keys import history_key, pointer_key, prompt_prefix
from ptpipeline.task.task import Task
from registry import failpoints
from registry.card.card import Provenance
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.listing import list_task
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.inventory import own_parts_of, take_inventory
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from registry.versions.publish import register, stage
from tests.registry.repair.test_doctor import overwrite

A, B = "a" * 64, "b" * 64
SHARED = {"method": "multitask", "labels": {}}


@pytest.mark.parametrize(
    ("changes", "stored", "parts"),
    [
        ({"parents": [A]}, set(), []),  # it lies in another task
        ({"parents": [A, B]}, {B}, [B]),
        (SHARED | {"parents": [A]}, set(), [A]),  # a teacher
        ({"method": "multitask", "parents": [A]}, set(), []),
        ({"members": Members(digests=[A, B], combine="vote")}, set(), [A, B]),
    ],
)
def test_members_and_teachers_are_needed_and_ancestors_where_they_lie(
    changes: dict[str, Any], stored: set[str], parts: list[str]
) -> None:
    manifest = an_artifact(a_task(), 1).manifest.model_copy(update=changes)
    assert own_parts_of(manifest, stored) == parts


def test_a_pointer_to_another_row_of_the_same_number_is_not_ahead(plain: Registry, task: Task) -> None:
    """The store went on with another ledger; which of the two is right, a person has to say."""
    head = promote(plain, task, published(plain, task, 1), Cause("me", "because"))
    other = head.model_copy(update={"actor": "rival"})
    overwrite(plain.store, history_key(task.name, "production", 1), other.model_dump_json(indent=1).encode())
    pointer = Pointer(promotion=other, nonce="n" * 16).model_dump_json().encode()
    overwrite(plain.store, pointer_key(task.name, "production"), pointer)
    inventory = take_inventory(plain, list_task(plain.store, task.name))
    assert not inventory.is_ahead("production", other)
    assert {found.kind for found in examine(plain)} >= {"foreign", "pointer"}


def test_results_that_a_report_does_not_state_are_nothing_to_compare(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    report = a_report(an_artifact(task, 1), 0.9)
    plain.store.create(report.rows_key, b"of an older ptpipeline")
    assert examine(plain) == []
    plain.ledger.save_report(report.model_copy(update={"rows_sha256": A}))
    assert [(found.kind, found.what) for found in examine(plain)] == [("results", f"object {report.rows_key}")]


def test_bytes_of_a_parent_that_is_a_version_are_told_of_that_version_alone(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    parent, made = an_artifact(task, 1), an_artifact(task, 2)
    child = Artifact(made.manifest.model_copy(update={"parents": [parent.digest]}), made.tensors)
    stage(plain.ledger, plain.store, child)
    tuned = plain.ledger.publication(task.name, parent.digest).tuned  # type: ignore[union-attr]
    changes = {"digest": child.digest, "training_key": child.manifest.training_key}
    register(plain, Provenance(tuned.model_copy(update=changes)))
    overwrite(plain.store, f"{prompt_prefix(task.name, parent.digest)}/prompt.safetensors", b"rot")
    assert [found.what for found in examine(plain)] == ["bytes of version 1"]


def test_a_prompt_of_which_the_store_alone_knows_is_examined_by_name(plain: Registry, task: Task) -> None:
    plain.store.create(f"{prompt_prefix(task.name, A)}/prompt.safetensors", b"left behind")
    assert [found.kind for found in examine(plain, task.name)] == ["orphan"]


@pytest.mark.parametrize(
    "step",
    [f"publish {did}" for did in ("intended", "staged", "remembered", "numbered", "named")],
)
def test_a_collected_version_that_is_published_again_is_told_as_that_publish(
    plain: Registry, task: Task, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(reached: str) -> None:
        if reached == step:
            raise Killed

    for seed in (1, 2):
        published(plain, task, seed)
    collect(plain, Retention(candidates=1, grace=timedelta(0)), apply=True)
    assert plain.ledger.version(task.name, 1).collected
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "_watching", [die])
        with pytest.raises(Killed):
            published(plain, task, 1)
    assert [found.kind for found in examine(plain)] == ["publish"]
    published(plain, task, 1)
    assert examine(plain) == []


class Killed(BaseException):
    pass
