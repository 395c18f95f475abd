"""What guards one verb that moves an alias guards the others: rollback, releases, aliases without a gate."""

import sqlite3
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_request, a_task, an_artifact, published
from ptpipeline.errors import PromotionConflict, PromotionRefused, ServiceUnavailable
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import prompt_prefix
from ptpipeline.task.task import Task
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger.ledger import Ledger, Move, Release
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import (
    Transition,
    check_alias,
    check_transition,
    point,
    promote,
    promote_release,
    rollback,
    rollback_release,
)
from registry.versions.publish import register
from tests.registry.repair.test_second_look import an_ensemble

ME = Cause("me", "because")
ANYWAY = Cause("me", "because", override=True)
NO_REASON = Cause("me", " ")
OLDER = "was it restored from an older backup"


def older(registry: Registry, folder: Path) -> Registry:
    """The registry over a copy of the ledger as it is now."""
    source, copy = sqlite3.connect(folder / "ledger.db"), sqlite3.connect(folder / "older.db")
    source.backup(copy)
    source.close(), copy.close()
    return Registry(Ledger(f"sqlite:///{folder}/older.db"), registry.store)


def two_promoted(registry: Registry, task: Task) -> None:
    """Version 1, then version 2 in production."""
    first = promote(registry, task, published(registry, task, 1), ME)
    promote(registry, task, published(registry, task, 2, first.digest), ME)


def altered(registry: Registry, task: Task, seed: int) -> None:
    """Let the stored bytes of the prompt with that seed be others."""
    key = f"{prompt_prefix(task.name, an_artifact(task, seed).digest)}/prompt.safetensors"
    stored = registry.store.read(key)
    registry.store.replace(key, stored.body[:-1] + bytes([stored.body[-1] ^ 1]), stored.etag)


def a_release(*tasks: Task, version: int = 2, name: str = "spring") -> Release:
    return Release(name=name, actor="me", reason="why", versions={t.name: version for t in tasks}, at="2026-01-01")


# ---------------------------------------------------------------- an older copy of the ledger


def test_an_older_ledger_rolls_nothing_back(plain: Registry, task: Task, tmp_path: Path) -> None:
    two_promoted(plain, task)
    copy = older(plain, tmp_path)
    promote(plain, task, 1, ANYWAY)
    with pytest.raises(PromotionRefused, match=OLDER):
        rollback(copy, task.name, ME)
    assert len(copy.ledger.history(task.name)) == 2


def test_an_older_ledger_rolls_no_release_back(plain: Registry, task: Task, tmp_path: Path) -> None:
    two_promoted(plain, task)
    promote_release(plain, {task.name: task}, a_release(task, version=1), ANYWAY)
    copy = older(plain, tmp_path)
    promote(plain, task, 2, ANYWAY)
    with pytest.raises(PromotionRefused, match=OLDER):
        rollback_release(copy, "spring", ME)


def test_an_older_ledger_promotes_no_release(plain: Registry, task: Task, tmp_path: Path) -> None:
    two_promoted(plain, task)
    copy = older(plain, tmp_path)
    promote(plain, task, 1, ANYWAY)
    with pytest.raises(PromotionRefused, match=OLDER):
        promote_release(copy, {task.name: task}, a_release(task, version=1), ANYWAY)


def test_an_older_ledger_points_no_alias_elsewhere(plain: Registry, task: Task, tmp_path: Path) -> None:
    published(plain, task, 1), published(plain, task, 2)
    copy = older(plain, tmp_path)
    point(plain, plain.ledger.version(task.name, 1), ME, "current")
    with pytest.raises(PromotionRefused, match=OLDER):
        point(copy, copy.ledger.version(task.name, 2), ME, "current")


def test_a_head_that_moved_meanwhile_is_a_conflict_and_no_older_ledger(plain: Registry, task: Task) -> None:
    two_promoted(plain, task)
    wanted, before = plain.ledger.version(task.name, 1), plain.ledger.promotion(task.name, "production", 1)
    move = check_transition(plain, task, Transition(before, wanted), ANYWAY, "production")
    with pytest.raises(PromotionConflict, match="expected seq 1"):
        plain.ledger.append(move)


# ---------------------------------------------------------------- bytes


def test_a_rollback_refuses_altered_bytes(plain: Registry, task: Task) -> None:
    two_promoted(plain, task)
    altered(plain, task, 1)
    with pytest.raises(PromotionRefused, match="cannot be served"):
        rollback(plain, task.name, ME)
    assert len(plain.ledger.history(task.name)) == 2


def test_a_rollback_of_a_release_refuses_altered_bytes(plain: Registry, task: Task) -> None:
    first = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, first.digest)
    promote_release(plain, {task.name: task}, a_release(task), ME)
    altered(plain, task, 1)
    with pytest.raises(PromotionRefused, match="cannot be served"):
        rollback_release(plain, "spring", ME)


def test_an_alias_without_a_gate_refuses_altered_bytes(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    altered(plain, task, 1)
    with pytest.raises(PromotionRefused, match="cannot be served"):
        point(plain, plain.ledger.version(task.name, 1), ME, "current")


@pytest.mark.parametrize("file", ["manifest.json", "prompt.safetensors"])
def test_an_ensemble_with_a_lost_member_is_not_promoted(plain: Registry, task: Task, file: str) -> None:
    members = an_ensemble(plain, task)
    plain.store.delete(f"{prompt_prefix(task.name, members[1].digest)}/{file}")
    with pytest.raises(PromotionRefused, match="version 1 cannot be served"):
        promote(plain, task, 1, ANYWAY)
    with pytest.raises(PromotionRefused, match="version 1 cannot be served"):
        point(plain, plain.ledger.version(task.name, 1), ME, "current")
    assert plain.ledger.heads() == []


def test_a_version_that_was_collected_is_told_as_such(plain: Registry, task: Task) -> None:
    for seed in (1, 2):
        published(plain, task, seed)
    collect(plain, Retention(candidates=1, grace=timedelta(0)), apply=True)
    with pytest.raises(PromotionRefused, match="the garbage collection deleted"):
        promote(plain, task, 1, ANYWAY)


def test_an_ensemble_whose_members_are_intact_is_promoted(plain: Registry, task: Task) -> None:
    an_ensemble(plain, task)
    assert promote(plain, task, 1, ANYWAY).version == 1


# ---------------------------------------------------------------- actor, reason, alias


def test_a_rollback_needs_a_reason(plain: Registry, task: Task) -> None:
    two_promoted(plain, task)
    with pytest.raises(PromotionRefused, match="needs an actor and a reason"):
        rollback(plain, task.name, NO_REASON)


def test_a_rollback_of_a_release_needs_a_reason(plain: Registry, task: Task) -> None:
    two_promoted(plain, task)
    promote_release(plain, {task.name: task}, a_release(task, version=1), ANYWAY)
    with pytest.raises(PromotionRefused, match="needs an actor and a reason"):
        rollback_release(plain, "spring", NO_REASON)


def test_no_gated_alias_is_pointed_at_what_has_no_gate(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    with pytest.raises(PromotionRefused, match="this alias is gated"):
        point(plain, plain.ledger.version(task.name, 1), ME, "production")


@pytest.mark.parametrize("alias", ["latest", "v1", "7"])
def test_no_verb_takes_a_reserved_alias(plain: Registry, task: Task, alias: str) -> None:
    published(plain, task, 1)
    version = plain.ledger.version(task.name, 1)
    for move in (
        lambda: promote(plain, task, 1, ME, alias),
        lambda: point(plain, version, ME, alias),
        lambda: rollback(plain, task.name, ME, alias=alias),
    ):
        with pytest.raises(PromotionRefused, match="expected lower-case letters"):
            move()


@pytest.mark.parametrize("alias", ["latest-good", "v1-canary", "3b", "not-latest"])
def test_an_alias_that_only_resembles_a_reserved_one_is_allowed(alias: str) -> None:
    assert check_alias(alias) == alias


def test_pointing_at_what_is_there_changes_nothing(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    heads = [point(plain, plain.ledger.version(task.name, 1), ME, "current") for _ in range(2)]
    assert heads[0] == heads[1]


def test_a_rollback_to_what_is_there_changes_nothing(plain: Registry, task: Task) -> None:
    two_promoted(plain, task)
    assert rollback(plain, task.name, ME, to=2) == plain.ledger.head(task.name, "production")
    assert len(plain.ledger.history(task.name)) == 2


# ---------------------------------------------------------------- which verdict


def test_a_return_cites_the_verdict_of_the_last_time(plain: Registry, task: Task) -> None:
    two_promoted(plain, task)
    published(plain, task, 1, an_artifact(task, 2).digest)
    again = promote(plain, task, 1, ME)
    published(plain, task, 3, again.digest)
    promote(plain, task, 3, ME)
    back = rollback(plain, task.name, ME, to=1)
    assert again.verdict != plain.ledger.history(task.name)[0].verdict
    assert back.verdict == again.verdict


def test_a_return_says_whether_the_last_time_was_an_override(plain: Registry, task: Task) -> None:
    first = promote(plain, task, published(plain, task, 1, kind="failed"), ANYWAY)
    second = promote(plain, task, published(plain, task, 2, first.digest), ME)
    published(plain, task, 1, second.digest)
    again = promote(plain, task, 1, ME)
    promote(plain, task, published(plain, task, 3, again.digest), ME)
    assert not rollback(plain, task.name, ME, to=1).override


def test_a_version_that_failed_since_is_refused(plain: Registry, task: Task) -> None:
    number = published(plain, task, 1)
    request = a_request(task, 1)
    assert request.verdict
    checks = [check.model_copy(update={"passed": False}) for check in request.verdict.checks]
    worse = request.verdict.model_copy(update={"gate_key": "b" * 64, "passed": False, "checks": checks})
    register(plain, replace(request, verdict=worse))
    with pytest.raises(PromotionRefused, match="it failed the gate"):
        promote(plain, task, number, ME)


def test_a_promotion_cites_the_newest_of_equal_verdicts(plain: Registry, task: Task) -> None:
    number = published(plain, task, 1)
    request = a_request(task, 1)
    assert request.verdict
    newer = request.verdict.model_copy(update={"gate_key": "b" * 64})
    register(plain, replace(request, verdict=newer))
    assert promote(plain, task, number, ME).verdict == newer.verdict_digest()


def test_a_verdict_has_to_be_over_policy_and_champion_of_today_at_once(plain: Registry, task: Task) -> None:
    """One verdict over today's policy and one over today's champion are none over both."""
    stricter = a_task(task.name, minimum=0.85)
    number = published(plain, stricter, 2)
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    with pytest.raises(PromotionRefused, match="judge it again first"):
        promote(plain, stricter, number, ME)


# ---------------------------------------------------------------- releases


def test_a_release_leaves_alone_what_stands_there_already(plain: Registry, task: Task) -> None:
    other = a_task(f"{task.name}-b")
    for each in (task, other):
        two_promoted(plain, each)
    promote(plain, other, 1, ANYWAY)
    moved = promote_release(plain, {t.name: t for t in (task, other)}, a_release(task, other), ANYWAY)
    assert [row.task for row in moved] == [other.name]
    assert len(plain.ledger.history(task.name)) == 2


def test_a_release_shows_readers_what_its_promoter_died_before(plain: Registry, task: Task) -> None:
    number = published(plain, task, 1)
    move = Move(task=task.name, alias="production", version=number, actor="me", reason="why", expected=0)
    plain.ledger.append(move)  # and its promoter was killed
    assert promote_release(plain, {task.name: task}, a_release(task, version=number), ME) == []
    assert plain.ledger.applied("store", task.name, "production") == (1, number)


class WithoutReleases(FolderStore):
    """A folder that takes no releases."""

    def create(self, key: str, body: bytes) -> None:
        if key.startswith("releases/"):
            raise ServiceUnavailable("the store went away")
        super().create(key, body)


def test_a_release_stands_though_the_store_did_not_take_it(
    plain: Registry, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    published(plain, task, 1)
    away = Registry(plain.ledger, WithoutReleases(Path(plain.store.url.removeprefix("file://"))))
    (moved,) = promote_release(away, {task.name: task}, a_release(task, version=1), ME)
    assert "release spring is not in the store yet" in caplog.text
    assert (moved.version, [found.name for found in plain.ledger.releases()]) == (1, ["spring"])
    assert plain.ledger.applied("store", task.name, "production") == (1, 1)


def test_the_first_promotion_by_a_release_is_not_rolled_back(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    promote_release(plain, {task.name: task}, a_release(task, version=1), ME)
    with pytest.raises(PromotionRefused, match="it named nothing before release 'spring'"):
        rollback_release(plain, "spring", ME)


def test_a_version_that_a_person_promoted_again_is_no_longer_the_releases(plain: Registry, task: Task) -> None:
    first = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, first.digest)
    promote_release(plain, {task.name: task}, a_release(task), ME)
    rollback_release(plain, "spring", ME)
    promote(plain, task, 2, ANYWAY)
    with pytest.raises(PromotionRefused, match="comes from it any more"):
        rollback_release(plain, "spring", ME)


@pytest.mark.parametrize("name", ["Spring", "a/b", ""])
def test_a_release_needs_a_name_that_a_key_can_hold(plain: Registry, task: Task, name: str) -> None:
    published(plain, task, 1)
    with pytest.raises(PromotionRefused, match="expected lower-case letters"):
        promote_release(plain, {task.name: task}, a_release(task, version=1, name=name), ME)


def test_a_name_that_stands_for_another_set_is_refused_before_anything_is_judged(plain: Registry, task: Task) -> None:
    two_promoted(plain, task)
    promote_release(plain, {task.name: task}, a_release(task, version=1), ANYWAY)
    stricter = a_task(task.name, minimum=0.85)  # the gate would refuse version 2 under this policy
    with pytest.raises(PromotionConflict, match=f"release 'spring' holds {task.name}@1 already"):
        promote_release(plain, {task.name: stricter}, a_release(task), ME)


def test_releases_are_told_the_newest_first(plain: Registry, task: Task) -> None:
    for at in ("2026-01-02", "2026-01-03", "2026-01-01"):
        plain.ledger.append_release(a_release(task, name=f"of-{at}").model_copy(update={"at": at}), [])
    assert [release.at for release in plain.ledger.releases()] == ["2026-01-03", "2026-01-02", "2026-01-01"]
