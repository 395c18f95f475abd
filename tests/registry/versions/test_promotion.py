"""Promotion and rollback over a folder and over real servers: what is allowed, what is refused, what serving sees."""

from dataclasses import replace

import pytest

from benchmarks.fixtures.prompts import a_request, a_task, an_artifact, published
from ptpipeline.errors import NotFound, PromotionConflict, PromotionRefused
from ptpipeline.records.base import now
from ptpipeline.records.versions import Pointer
from ptpipeline.storage.keys import pointer_key, prompt_prefix, release_key
from ptpipeline.task.task import Task
from registry.ledger.ledger import Move, Release
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.reconcile import reconcile
from registry.versions.commit import Cause, encode_release, write_release
from registry.versions.history import path_of
from registry.versions.promotion import check_alias, point, promote, promote_release, rollback, rollback_release
from registry.versions.publish import register, stage

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


def test_a_rollback_for_another_reason_goes_further_back(plain: Registry, task: Task) -> None:
    head = None
    for seed in (1, 2, 3):
        head = promote(plain, task, published(plain, task, seed, head.digest if head else None), ME)
    reasons = (Cause("me", reason) for reason in ("complaints", "more complaints", "no end of complaints"))
    assert [rollback(plain, task.name, next(reasons)).version for _ in range(2)] == [2, 1]
    with pytest.raises(PromotionRefused, match="version 1 is the first promotion; there is nothing to roll back to"):
        rollback(plain, task.name, next(reasons))


def test_a_rollback_that_is_repeated_goes_one_step_back(
    plain: Registry, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever was killed just before the answer came repeats the command; production loses no second version."""
    head = None
    for seed in (1, 2, 3):
        head = promote(plain, task, published(plain, task, seed, head.digest if head else None), ME)
    assert rollback(plain, task.name, ME) == rollback(plain, task.name, ME)
    assert served(plain, task) == 2
    assert "another reason, or `--to N`, goes further back" in caplog.text


def test_another_person_with_the_same_reason_goes_further_back(plain: Registry, task: Task) -> None:
    head = None
    for seed in (1, 2, 3):
        head = promote(plain, task, published(plain, task, seed, head.digest if head else None), ME)
    assert [rollback(plain, task.name, Cause(who, "complaints")).version for who in ("ann", "ann", "bob")] == [2, 2, 1]


def test_a_version_that_is_named_is_gone_back_to_for_the_same_reason_too(plain: Registry, task: Task) -> None:
    head = None
    for seed in (1, 2, 3):
        head = promote(plain, task, published(plain, task, seed, head.digest if head else None), ME)
    assert [rollback(plain, task.name, ME).version, rollback(plain, task.name, ME, to=1).version] == [2, 1]


def test_a_reason_that_was_given_before_rolls_back_what_was_promoted_since(plain: Registry, task: Task) -> None:
    for seed in (1, 2, 3):
        published(plain, task, seed)
    promote(plain, task, 1, Cause("me", "because", override=True))
    promote(plain, task, 2, Cause("me", "because", override=True))
    assert rollback(plain, task.name, ME).version == 1
    promote(plain, task, 3, Cause("me", "because", override=True))
    assert rollback(plain, task.name, ME).version == 1


def test_the_path_drops_what_a_person_went_back_from(plain: Registry, task: Task) -> None:
    for seed in (1, 2, 3):
        published(plain, task, seed)
        promote(plain, task, seed, Cause("me", "because", override=True))
    rollback(plain, task.name, ME, to=2)
    history = plain.ledger.history(task.name, "production")
    assert [row.version for row in history] == [1, 2, 3, 2]
    assert [(row.version, row.seq) for row in path_of(history)] == [(1, 1), (2, 4)]


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
    with pytest.raises(PromotionRefused, match=r"the champion changed .* judge it again first: `ptp run"):
        promote(plain, task, rival, ME)


def test_production_refuses_another_policy(plain: Registry, task: Task) -> None:
    number = published(plain, task, 1)
    with pytest.raises(PromotionRefused, match="gate policy changed"):
        promote(plain, a_task(task.name, minimum=0.85), number, ME)


def test_what_changed_is_told_of_the_newest_verdict(plain: Registry, task: Task) -> None:
    number = published(plain, a_task(task.name, minimum=0.85), 2)
    published(plain, task, 2)
    promote(plain, task, published(plain, task, 1), ME)
    with pytest.raises(PromotionRefused, match="the champion changed since it was judged"):
        promote(plain, task, number, ME)


def test_production_refuses_an_unjudged_version(plain: Registry, task: Task) -> None:
    stage(plain.ledger, plain.store, an_artifact(task, 1))
    number = register(plain, replace(a_request(task, 1), verdict=None)).number
    with pytest.raises(PromotionRefused, match="the gate has not judged it; judge it first: `ptp run"):
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
    with pytest.raises(
        PromotionConflict, match=r"expected no promotion yet .* by bob, found seq 1, version 1, moved by ann at"
    ):
        plain.ledger.append(Move(task=task.name, alias="production", version=1, actor="bob", reason="too", expected=0))


# ---------------------------------------------------------------- against the gate


def test_an_override_stands_in_the_history_for_ever(registry: Registry, task: Task) -> None:
    number = published(registry, task, 1, kind="failed")
    promoted = promote(registry, task, number, Cause("ann", "the old one is down", override=True))
    assert (promoted.override, promoted.reason, served(registry, task)) == (True, "the old one is down", 1)
    assert promoted.verdict == a_request(task, 1, passed=False).verdict.verdict_digest()  # type: ignore[union-attr]
    [row] = registry.ledger.history(task.name)
    assert row.override
    assert examine(registry, task.name) == []


def test_an_override_that_was_not_needed_is_none(plain: Registry, task: Task) -> None:
    assert not promote(plain, task, published(plain, task, 1), Cause("ann", "in a hurry", override=True)).override


@pytest.mark.parametrize("cause", [Cause("ann", "", override=True), Cause("ann", "  "), Cause("", "why")])
def test_a_promotion_needs_actor_and_reason(plain: Registry, task: Task, cause: Cause) -> None:
    number = published(plain, task, 1)
    with pytest.raises(PromotionRefused, match="needs an actor and a reason"):
        promote(plain, task, number, cause)


@pytest.mark.parametrize("odd", ["of \udcff bytes", "of \0"])
@pytest.mark.parametrize("field", ["actor", "reason"])
def test_what_the_history_cannot_keep_is_refused(plain: Registry, task: Task, field: str, odd: str) -> None:
    number, cause = published(plain, task, 1), replace(ME, **{field: odd})
    with pytest.raises(PromotionRefused, match="which the history cannot keep"):
        promote(plain, task, number, cause)
    with pytest.raises(PromotionRefused, match="which the history cannot keep"):
        point(plain, plain.ledger.version(task.name, number), cause, "current")


def test_no_override_promotes_altered_bytes(plain: Registry, task: Task) -> None:
    number = plain.ledger.add_version(task.name, "a" * 64).number
    with pytest.raises(PromotionRefused, match="cannot be served"):
        promote(plain, task, number, Cause("ann", "why not", override=True))


def test_no_override_promotes_another_base_model(plain: Registry, task: Task) -> None:
    number = published(plain, task, 1)
    with pytest.raises(PromotionRefused, match="trained for base model tiny"):
        promote(plain, task.model_copy(update={"base_model": "other"}), number, Cause("ann", "why not", override=True))


def test_a_return_to_an_overridden_version_says_so(plain: Registry, task: Task) -> None:
    first = promote(plain, task, published(plain, task, 1, kind="failed"), Cause("ann", "why not", override=True))
    promote(plain, task, published(plain, task, 2, first.digest), ME)
    assert rollback(plain, task.name, ME).override


def test_a_ledger_behind_the_store_promotes_nothing(plain: Registry, task: Task) -> None:
    """As after a restore from an older backup: the store's pointer knows a promotion that the ledger does not."""
    first = promote(plain, task, published(plain, task, 1), ME)
    number = published(plain, task, 2, first.digest)
    stored = plain.store.read(pointer_key(task.name, "production"))
    newer = first.model_copy(update={"seq": 2, "version": 2})
    plain.store.replace(
        pointer_key(task.name, "production"),
        Pointer(promotion=newer, nonce="n" * 16).model_dump_json().encode(),
        stored.etag,
    )
    with pytest.raises(PromotionRefused, match=r"the store knows promotion 2 .* the ledger only 1; was it restored"):
        promote(plain, task, number, ME)


# ---------------------------------------------------------------- releases


@pytest.fixture
def pair(registry: Registry, task: Task) -> tuple[Task, Task]:
    """Two tasks whose version 1 is in production and whose version 2 passed against it."""
    other = a_task(f"{task.name}-b")
    for each in (task, other):
        head = promote(registry, each, published(registry, each, 1), ME)
        published(registry, each, 2, head.digest)
    return task, other


def spring(*tasks: Task, version: int = 2) -> Release:
    return Release(
        name=f"spring-{tasks[0].name}",
        actor="me",
        reason="a new base",
        versions={task.name: version for task in tasks},
        at=now(),
    )


def test_a_release_promotes_all_its_tasks(registry: Registry, pair: tuple[Task, Task]) -> None:
    moved = promote_release(registry, {task.name: task for task in pair}, spring(*pair), ME)
    assert [(row.version, row.release) for row in moved] == [(2, f"spring-{pair[0].name}")] * 2
    assert [served(registry, task) for task in pair] == [2, 2]
    assert [difference for task in pair for difference in examine(registry, task.name)] == []


def test_a_release_that_is_repeated_stays_as_it_was_first_asked_for(
    plain: Registry, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    other = a_task(f"{task.name}-b")
    release = spring(other, task, version=1)
    for each in (task, other):
        published(plain, each, 1)
    moved = promote_release(plain, {each.name: each for each in (task, other)}, release, ME)
    assert [row.task for row in moved] == [task.name, other.name]  # whatever the order of the request
    later = release.model_copy(update={"at": "2030-01-01T00:00:00+00:00"})
    assert promote_release(plain, {each.name: each for each in (task, other)}, later, ME) == []
    assert caplog.text == ""
    assert plain.store.read(release_key(release.name)).body == encode_release(release)


def test_a_release_with_one_refused_version_moves_nothing(registry: Registry, pair: tuple[Task, Task]) -> None:
    stricter = a_task(pair[1].name, minimum=0.85)
    with pytest.raises(PromotionRefused, match="gate policy changed"):
        promote_release(registry, {pair[0].name: pair[0], stricter.name: stricter}, spring(*pair), ME)
    assert [served(registry, task) for task in pair] == [1, 1]
    assert registry.ledger.release(f"spring-{pair[0].name}") is None


def test_a_release_that_moves_nothing_needs_a_reason(plain: Registry, task: Task) -> None:
    promote(plain, task, published(plain, task, 1), ME)
    with pytest.raises(PromotionRefused, match="needs an actor and a reason"):
        promote_release(plain, {task.name: task}, spring(task, version=1), Cause("me", " "))


def test_a_release_name_that_the_store_alone_knows_is_not_given_again(plain: Registry, task: Task) -> None:
    """As after a restore from an older backup, for tasks that no promotion since has touched."""
    published(plain, task, 1)
    release = spring(task, version=1)
    write_release(plain.store, release.model_copy(update={"versions": {"another": 7}}))
    with pytest.raises(PromotionRefused, match="the store holds it, the ledger does not"):
        promote_release(plain, {task.name: task}, release, ME)
    assert plain.ledger.head(task.name, "production") is None


def test_a_release_rolls_back_together(registry: Registry, pair: tuple[Task, Task]) -> None:
    release = spring(*pair)
    promote_release(registry, {task.name: task for task in pair}, release, ME)
    back = rollback_release(registry, release.name, Cause("night watch", "complaints"))
    assert [(row.version, row.actor, row.seq) for row in back] == [(1, "night watch", 3)] * 2
    assert rollback_release(registry, release.name, Cause("night watch", "complaints")) == back
    assert [served(registry, task) for task in pair] == [1, 1]
    with pytest.raises(PromotionRefused, match="comes from it any more"):
        rollback_release(registry, release.name, ME)


def test_a_release_leaves_alone_what_moved_on(plain: Registry, task: Task) -> None:
    other = a_task(f"{task.name}-b")
    for each in (task, other):
        head = promote(plain, each, published(plain, each, 1), ME)
        published(plain, each, 2, head.digest)
    release = spring(task, other)
    promote_release(plain, {each.name: each for each in (task, other)}, release, ME)
    rollback(plain, other.name, Cause("ann", "mine is worse"))
    assert [row.task for row in rollback_release(plain, release.name, ME)] == [task.name]


def test_an_unknown_release_is_not_rolled_back(plain: Registry) -> None:
    with pytest.raises(NotFound, match="no release 'spring'"):
        rollback_release(plain, "spring", ME)


@pytest.mark.parametrize("alias", ["latest", "v1", "3", "Prod", "a/b", "", "-x"])
def test_reserved_aliases_are_refused(alias: str) -> None:
    with pytest.raises(PromotionRefused, match="expected lower-case letters"):
        check_alias(alias)


def test_a_reconcile_brings_releases_to_the_store(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    promote_release(plain, {task.name: task}, spring(task), ME)
    plain.store.delete(release_key(f"spring-{task.name}"))
    assert [action.what for action in reconcile(plain, {task.name: task})] == [
        f"release spring-{task.name} written to the store"
    ]
    assert examine(plain) == []
