"""Promotion and rollback over a folder and over real servers: what is allowed, what is refused, what serving sees."""

from dataclasses import replace

import pytest

from ptpipeline.errors import NotFound, PromotionConflict, PromotionRefused
from ptpipeline.records import Pointer, pointer_key, prompt_prefix
from ptpipeline.task import Task
from registry.doctor import examine
from registry.ledger import Move
from registry.promotion import Cause, checked_alias, promote, rollback
from registry.publish import register, stage
from registry.registry import Registry
from tests.registry.prompts import a_request, a_task, an_artifact, published

ME = Cause("me", "because")


def served(registry: Registry, task: Task, alias: str = "production") -> int:
    """The version that a server would resolve from the object store alone."""
    return Pointer.model_validate_json(registry.store.read(pointer_key(task.name, alias)).body).promotion.version


def test_promotion_reaches_every_projection(registry: Registry, task: Task) -> None:
    first = promote(registry, task, published(registry, task, 1), ME)
    second = promote(registry, task, published(registry, task, 2, first.digest), ME)
    assert (second.seq, second.previous, served(registry, task)) == (2, 1, 2)
    assert second.verdict == a_request(task, 2, first.digest).verdict.verdict_digest()  # type: ignore[union-attr]
    assert examine(registry, task.name) == []


def test_rollback_is_a_promotion(registry: Registry, task: Task) -> None:
    first = promote(registry, task, published(registry, task, 1), ME)
    promote(registry, task, published(registry, task, 2, first.digest), ME)
    back = rollback(registry, task.name, Cause("night watch", "complaints"))
    assert (back.seq, back.version, back.previous, back.actor) == (3, 1, 2, "night watch")
    assert served(registry, task) == 1
    assert examine(registry, task.name) == []


def test_promoting_the_head_changes_nothing(registry: Registry, task: Task) -> None:
    number = published(registry, task, 1)
    assert promote(registry, task, number, ME) == promote(registry, task, number, Cause("other", "again"))
    assert len(registry.ledger.history(task.name)) == 1


def test_repeated_rollback_goes_further_back(plain: Registry, task: Task) -> None:
    head = None
    for seed in (1, 2, 3):
        head = promote(plain, task, published(plain, task, seed, head.digest if head else None), ME)
    assert [rollback(plain, task.name, ME).version for _ in range(2)] == [2, 1]
    with pytest.raises(PromotionRefused, match="nothing was promoted before version 1"):
        rollback(plain, task.name, ME)


def test_rollback_to_a_named_version(plain: Registry, task: Task) -> None:
    head = None
    for seed in (1, 2, 3):
        head = promote(plain, task, published(plain, task, seed, head.digest if head else None), ME)
    assert rollback(plain, task.name, ME, to=1).version == 1


def test_rollback_refuses_what_was_never_promoted(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    with pytest.raises(PromotionRefused, match="version 2 was never promoted"):
        rollback(plain, task.name, ME, to=2)


def test_rollback_of_an_unknown_alias(plain: Registry, task: Task) -> None:
    with pytest.raises(NotFound, match="never promoted"):
        rollback(plain, task.name, ME)


def test_production_refuses_a_failed_version(plain: Registry, task: Task) -> None:
    with pytest.raises(PromotionRefused, match=r"failed the gate .minimum: 0.50, required >= 0.80"):
        promote(plain, task, published(plain, task, 1, kind="failed"), ME)
    assert plain.ledger.heads() == []


def test_production_refuses_an_outdated_champion(plain: Registry, task: Task) -> None:
    rival = published(plain, task, 2)
    promote(plain, task, published(plain, task, 1), ME)
    with pytest.raises(PromotionRefused, match=r"the champion changed .* gate again first: `ptp run"):
        promote(plain, task, rival, ME)


def test_production_refuses_another_policy(plain: Registry, task: Task) -> None:
    number = published(plain, task, 1)
    with pytest.raises(PromotionRefused, match="gate policy changed"):
        promote(plain, a_task(task.name, minimum=0.85), number, ME)


def test_production_refuses_an_unjudged_version(plain: Registry, task: Task) -> None:
    stage(plain.ledger, plain.store, an_artifact(task, 1))
    number = register(plain, replace(a_request(task, 1), verdict=None)).number
    with pytest.raises(PromotionRefused, match="the gate has not judged it; gate first: `ptp run"):
        promote(plain, task, number, ME)


def test_production_refuses_missing_bytes(plain: Registry, task: Task) -> None:
    number = plain.ledger.add_version(task.name, "a" * 64).number
    with pytest.raises(PromotionRefused, match="cannot be served"):
        promote(plain, task, number, ME)


def test_production_refuses_altered_bytes(registry: Registry, task: Task) -> None:
    number = published(registry, task, 1)
    key = f"{prompt_prefix(task.name, an_artifact(task, 1).digest)}/prompt.safetensors"
    stored = registry.store.read(key)
    registry.store.replace(key, stored.body[:-1] + b"x", stored.etag)
    with pytest.raises(PromotionRefused, match="truncated or altered"):
        promote(registry, task, number, ME)


def test_production_refuses_another_base_model(plain: Registry, task: Task) -> None:
    number = published(plain, task, 1)
    with pytest.raises(PromotionRefused, match="trained for base model tiny"):
        promote(plain, task.model_copy(update={"base_model": "other"}), number, ME)


def test_own_aliases_are_not_gated(plain: Registry, task: Task) -> None:
    assert promote(plain, task, published(plain, task, 1, kind="failed"), ME, "canary").alias == "canary"
    assert served(plain, task, "canary") == 1


def test_a_rival_wins_with_the_newest_verdict(plain: Registry, task: Task) -> None:
    rival = published(plain, task, 2)
    first = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, first.digest)
    assert promote(plain, task, rival, ME).version == rival


def test_promotion_of_an_unknown_version(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    with pytest.raises(NotFound, match="no version 7; there are 1 to 1"):
        promote(plain, task, 7, ME)


def test_conflict_names_both_heads(plain: Registry, task: Task) -> None:
    promote(plain, task, published(plain, task, 1), Cause("ann", "first"))
    with pytest.raises(PromotionConflict, match=r"expected no promotion yet .* by bob, found seq 1, version 1, moved by ann at"):
        plain.ledger.append(Move(task=task.name, alias="production", version=1, actor="bob", reason="too", expected=0))


@pytest.mark.parametrize("alias", ["latest", "v1", "3", "Prod", "a/b", "", "-x"])
def test_reserved_aliases_are_refused(alias: str) -> None:
    with pytest.raises(PromotionRefused, match="expected lower-case letters"):
        checked_alias(alias)
