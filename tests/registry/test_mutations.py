"""The test of the test: chaos's checker finds what happens without the read-back, the unique key, the seq guard or the
lease.

Each scenario is the smallest that needs its safeguard, and runs twice: as the registry is, where nothing may be found,
and with exactly that piece taken out of every worker.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
import pytest
from sqlalchemy import Connection

from benchmarks.chaos.checker import Finding
from benchmarks.chaos.crew import Crew
from benchmarks.chaos.world import World, running
from benchmarks.faults import Fault, scripted
from ptpipeline.records import Pointer, Promotion
from ptpipeline.storage import S3Store, Stored
from ptpipeline.storage.keys import pointer_key
from registry.ledger.database import Database
from registry.ledger.lease import Lease
from registry.registry import Registry
from registry.versions import mlflow_edit, projection
from registry.versions.mlflow_alias import Action

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("mutations")) as world:
        yield world


# ---------------------------------------------------------------- scenarios


def lost_answer(crew: Crew) -> None:
    """The answer to the write of the promotion's history is lost, and the client's repeat meets its own write."""
    crew.done(crew.job("publish", seed=0))
    worker = crew.start(crew.job("promote", seed=0), stops=[("promotion committed", 1)])
    worker.stands()
    crew.world.proxy.plan = scripted([Fault.CUT_AFTER], method="PUT")
    worker.release()
    crew.gather()
    crew.done(crew.job("reconcile"))


def same_head(crew: Crew) -> None:
    """Two promoters read the same head before either commits."""
    crew.done(crew.job("publish", seed=0), crew.job("publish", seed=1))
    workers = [crew.start(crew.job("promote", seed=seed), stops=[("promotion checked", 1)]) for seed in (0, 1)]
    for worker in workers:
        assert worker.stands()
    for worker in workers:
        worker.release()
    crew.gather()
    crew.done(crew.job("reconcile"))


def late_pointer(crew: Crew) -> None:
    """A promoter stands before its write of the pointer until all is reconciled to a later promotion; it wakes up, and
    dies with it.
    """
    crew.done(*(crew.job("publish", seed=seed) for seed in (0, 1)))
    slow = crew.start(crew.job("promote", seed=0), stops=[("history written", 1), ("pointer written", 1)])
    assert slow.stands()
    crew.done(crew.job("promote", seed=1), crew.job("reconcile"))
    slow.release()
    assert slow.stands()
    slow.kill()


def crossed_aliases(crew: Crew) -> None:
    """A promoter stands before its write of MLflow's alias, a later one within its own; the first one writes in
    between.
    """
    crew.done(*(crew.job("publish", seed=seed) for seed in (0, 1)))
    first = crew.start(crew.job("promote", seed=0), stops=[("alias attempted", 1)])
    assert first.stands()
    second = crew.start(crew.job("promote", seed=1), stops=[("alias moved", 1)])
    assert second.stands()
    first.release()
    first.end()
    second.release()
    second.end()
    crew.done(crew.job("reconcile"))


# ---------------------------------------------------------------- mutations, each run in the worker before its work


def without_read_back() -> None:
    def nothing(store: S3Store, key: str) -> Stored | None:
        return None

    S3Store._read_if_stored = nothing  # type: ignore[method-assign, assignment]


def without_seq_guard() -> None:
    def write(registry: Registry, head: Promotion) -> list[Action]:
        key, body = (
            pointer_key(head.task, head.alias),
            Pointer(promotion=head, nonce="f" * 16).model_dump_json().encode(),
        )
        if registry.store.exists(key):
            registry.store.replace(key, body, registry.store.read(key).etag)
        else:
            registry.store.create(key, body)
        return []

    projection._write_pointer = write


def without_lease() -> None:
    class NoLease(Lease):
        def renew(self) -> None:
            return

        def keep(self, connection: Connection) -> None:
            return

    @contextmanager
    def leased(database: Database, name: str, seconds: float) -> Iterator[Lease]:
        yield NoLease(database, name, seconds)

    projection.leased = mlflow_edit.leased = leased  # type: ignore[attr-defined]


def without_unique_key(crew: Crew) -> None:
    with psycopg.connect(crew.site.ledger) as connection:
        connection.execute("ALTER TABLE promotion DROP CONSTRAINT promotion_pkey")


class Case(NamedTuple):
    """A scenario, and what it needs: a piece taken out of the workers, or out of the ledger's database."""

    scenario: Callable[[Crew], None]
    prepare: Callable[[], None] | None = None
    damage: Callable[[Crew], None] = lambda crew: None


CASES = {
    "read-back": Case(lost_answer, without_read_back),
    "unique key": Case(same_head, damage=without_unique_key),
    "seq guard": Case(late_pointer, without_seq_guard),
    "lease": Case(crossed_aliases, without_lease),
}


def found(world: World, case: Case, mutated: bool) -> list[Finding]:
    crew = Crew(world, world.site(1), Counter(), case.prepare if mutated else None)
    if mutated:
        with crew.site.looked_at():  # which makes the tables
            case.damage(crew)
    case.scenario(crew)
    crew.gather()
    return crew.examined()


@pytest.mark.parametrize("safeguard", CASES)
def test_with_its_safeguard_nothing_is_lost_or_torn(world: World, safeguard: str) -> None:
    assert found(world, CASES[safeguard], mutated=False) == []


@pytest.mark.parametrize("safeguard", CASES)
def test_without_its_safeguard_the_checker_reports(world: World, safeguard: str) -> None:
    findings = found(world, CASES[safeguard], mutated=True)
    assert findings, f"chaos would not notice that the {safeguard} is gone"
