"""Tombstones: one collector at a time, each undoes only its own, and each stands for one prompt of one task."""

import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from sqlalchemy import Connection, update

from benchmarks.fixtures.postgres import Postgres
from ptpipeline.errors import LeaseHeld, PromotionRefused
from ptpipeline.records.versions import Beside
from registry.ledger import tables, tombstone
from registry.ledger.holdings import holdings
from registry.ledger.ledger import Ledger, Move
from registry.ledger.tombstone import Tombstone, forget_unmarked, refuse_buried
from registry.registry import Registry

ONE, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def ledger(plain: Registry) -> Ledger:
    return plain.ledger


def buried(ledger: Ledger, task: str = "mood", digest: str = ONE) -> Tombstone:
    grave = Tombstone(ledger.database, task, digest)
    assert grave.bury(lambda _: False)
    return grave


def overtaken(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Tombstone:
    """A tombstone that expired, and that another collector holds now."""
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    late = buried(ledger)
    monkeypatch.setattr(tombstone, "SECONDS", 60.0)
    buried(ledger)
    return late


def is_buried(ledger: Ledger, task: str = "mood", digest: str = ONE) -> bool:
    try:
        ledger.intend(task, digest)
    except LeaseHeld:
        return True
    return False


def test_two_collectors_do_not_bury_the_same_prompt(ledger: Ledger) -> None:
    buried(ledger)
    with pytest.raises(LeaseHeld, match="is being deleted"):
        Tombstone(ledger.database, "mood", ONE).bury(lambda _: False)


def test_what_is_needed_is_not_buried(ledger: Ledger) -> None:
    assert not Tombstone(ledger.database, "mood", ONE).bury(lambda _: True)
    assert not is_buried(ledger)


@pytest.mark.parametrize(("task", "digest"), [("topic", ONE), ("mood", OTHER)])
def test_a_tombstone_keeps_nobody_from_burying_another_prompt(ledger: Ledger, task: str, digest: str) -> None:
    buried(ledger)
    buried(ledger, task, digest)


def test_a_collector_that_was_overtaken_holds_the_tombstone_no_longer(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = overtaken(ledger, monkeypatch)
    assert (late.renew(), late.leave(), late.lift()) == (False, False, False)
    assert is_buried(ledger)


def test_a_renewed_tombstone_lasts_from_then_on(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    grave = buried(ledger)
    monkeypatch.setattr(tombstone, "SECONDS", 60.0)
    assert grave.renew()
    assert is_buried(ledger)


def test_a_left_tombstone_is_a_mark_that_a_publish_takes_over(ledger: Ledger) -> None:
    ledger.add_version("mood", ONE)
    assert buried(ledger).leave()
    assert ledger.version("mood", 1).collected
    assert not is_buried(ledger)
    assert not ledger.version("mood", 1).collected


@pytest.mark.parametrize(("task", "digest"), [("topic", ONE), ("mood", OTHER)])
def test_a_publish_takes_over_the_tombstone_of_its_own_prompt_alone(ledger: Ledger, task: str, digest: str) -> None:
    ledger.add_version("mood", ONE)
    buried(ledger).leave()
    ledger.intend(task, digest)
    assert ledger.version("mood", 1).collected


@pytest.mark.parametrize(("task", "digest"), [("topic", ONE), ("mood", OTHER)])
def test_a_lifted_or_left_tombstone_is_its_own_alone(ledger: Ledger, task: str, digest: str) -> None:
    buried(ledger)
    other = buried(ledger, task, digest)
    assert (other.leave(), other.lift()) == (True, True)
    assert is_buried(ledger)


@pytest.mark.parametrize(("task", "digest"), [("topic", ONE), ("mood", OTHER)])
def test_a_tombstone_marks_and_refuses_its_own_version_alone(ledger: Ledger, task: str, digest: str) -> None:
    ledger.add_version("mood", ONE)
    buried(ledger, task, digest)
    assert not ledger.version("mood", 1).collected
    move = Move(task="mood", alias="canary", version=1, actor="me", reason="why", expected=0)
    assert ledger.append(move).version == 1


def test_one_buried_version_keeps_a_whole_release_from_moving(ledger: Ledger) -> None:
    from registry.ledger.ledger import Release

    for task in ("mood", "topic"):
        ledger.add_version(task, ONE)
    buried(ledger, "topic")
    moves = [
        Move(task=task, alias="production", version=1, actor="me", reason="why", expected=0)
        for task in ("mood", "topic")
    ]
    spring = Release(name="spring", actor="me", reason="why", versions={"mood": 1, "topic": 1}, at="2026-01-01")
    with pytest.raises(PromotionRefused, match="topic: the garbage collection deleted"):
        ledger.append_release(spring, moves)
    assert (ledger.heads(), ledger.releases()) == ([], [])


def test_only_expired_tombstones_that_mark_no_version_are_forgotten(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add_version("mood", ONE)
    monkeypatch.setattr(tombstone, "SECONDS", -1.0)
    for task, digest in (("mood", ONE), ("topic", ONE), ("mood", OTHER)):
        buried(ledger, task, digest)
    monkeypatch.setattr(tombstone, "SECONDS", 60.0)
    buried(ledger, "tone")
    forget_unmarked(ledger.database)
    left = {task: holdings(ledger, task).tombstones for task in ("mood", "topic", "tone")}
    assert left == {"mood": {ONE}, "topic": set(), "tone": {ONE}}


def test_a_tombstone_of_before_the_clock_was_set_back_is_over(ledger: Ledger) -> None:
    """Or of before the machine was started again, or of a ptpipeline that counted from 1970."""
    for task in ("mood", "topic", "tone"):
        buried(ledger, task)
    with ledger.database.writing() as connection:
        ends = ledger.database.clock(connection) + 3600
        connection.execute(update(tables.tombstone).where(tables.tombstone.c.task != "tone").values(expires_at=ends))
    assert not is_buried(ledger)
    buried(ledger, "topic")
    buried(ledger, "mood", OTHER)
    forget_unmarked(ledger.database)
    assert is_buried(ledger, "tone")


def test_a_tombstone_that_ends_later_than_one_can_last_is_forgotten(ledger: Ledger) -> None:
    for task in ("mood", "topic"):
        buried(ledger, task)
    with ledger.database.writing() as connection:
        ends = ledger.database.clock(connection) + 3600
        connection.execute(update(tables.tombstone).where(tables.tombstone.c.task == "mood").values(expires_at=ends))
    forget_unmarked(ledger.database)
    assert [holdings(ledger, task).tombstones for task in ("mood", "topic")] == [set(), {ONE}]


def test_what_is_to_stand_beside_a_version_must_not_be_buried(ledger: Ledger) -> None:
    for digest in (ONE, OTHER):
        ledger.add_version("mood", digest)
    move = Move(task="mood", alias="canary", version=1, actor="me", reason="why", expected=0)
    ledger.append(move)
    buried(ledger, "mood", OTHER)
    beside = Beside(version=2, digest=OTHER, percent=10)
    with pytest.raises(PromotionRefused, match=f"the garbage collection deleted prompt {OTHER[:12]}"):
        ledger.append(move.model_copy(update={"expected": 1, "beside": beside}))


# ---------------------------------------------------------------- two transactions at once, as PostgreSQL has them


@pytest.fixture
def two(postgres: Postgres, new_database: str) -> Iterator[tuple[Ledger, Ledger]]:
    """One ledger, opened and connected by two programs."""
    url = postgres.create_database(f"ledger-{uuid.uuid4().hex}", new_database)
    opened = Ledger(url), Ledger(url)
    assert [each.tasks() for each in opened] == [[], []]
    yield opened
    for each in opened:
        each.close()


@pytest.mark.servers
def test_a_prompt_that_is_being_promoted_is_buried_behind_that_alone(two: tuple[Ledger, Ledger]) -> None:
    """Else whoever buries would ask before the promotion is there whether anything needs the prompt."""
    with ThreadPoolExecutor(1) as pool:
        with two[0].database.writing() as connection:
            refuse_buried(two[0].database, connection, "mood", ONE)
            burying = pool.submit(Tombstone(two[1].database, "mood", ONE).bury, lambda _: False)
            assert wait([burying], 0.3).not_done
        assert burying.result()


@pytest.mark.servers
def test_a_promotion_waits_for_a_burial_that_is_under_way(two: tuple[Ledger, Ledger]) -> None:
    two[0].add_version("mood", ONE)
    move = Move(task="mood", alias="production", version=1, actor="me", reason="why", expected=0)
    promoting: list[Future[object]] = []
    with ThreadPoolExecutor(1) as pool:

        def needed(_connection: Connection) -> bool:
            promoting.append(pool.submit(two[1].append, move))
            assert wait(promoting, 0.3).not_done
            return False

        assert Tombstone(two[0].database, "mood", ONE).bury(needed)
        with pytest.raises(PromotionRefused, match="garbage collection"):
            promoting[0].result()
