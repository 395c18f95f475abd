"""The test of the test: chaos's checker finds what happens without the read-back, the unique key, the seq guard or the
lease.

Each scenario is the smallest that needs its safeguard, and runs twice: as the registry is, when nothing may be found,
and with exactly that piece taken out of every worker.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
import pytest
from sqlalchemy import Connection

from benchmarks.chaos.backends import Backends
from benchmarks.chaos.checker import Finding
from benchmarks.chaos.controller import Controller
from benchmarks.chaos.worker import Stop
from benchmarks.faults import Fault, scripted
from ptpipeline.records.versions import Pointer, Promotion
from ptpipeline.storage import S3Store, Stored
from ptpipeline.storage.keys import pointer_key
from registry.ledger.database import Database
from registry.ledger.lease import Lease
from registry.registry import Registry
from registry.versions import mlflow_edit, projection
from registry.versions.mlflow_alias import Action

pytestmark = [pytest.mark.servers, pytest.mark.soak]  # `make soak` runs chaos itself, too


# ---------------------------------------------------------------- scenarios


def lost_answer(controller: Controller) -> None:
    """The answer to the write of the promotion's history is lost, and the client's repeat meets its own write."""
    controller.run(controller.make_job("publish", seed=0))
    worker = controller.start(controller.make_job("promote", seed=0), stops=[Stop("promotion committed", 1)])
    worker.reaches_stop()
    controller.backends.proxy.plan = scripted([Fault.CUT_AFTER], method="PUT")
    worker.resume()
    controller.finish_workers()
    controller.run(controller.make_job("reconcile"))


def same_head(controller: Controller) -> None:
    """Two promoters read the same head before either commits."""
    controller.run(controller.make_job("publish", seed=0), controller.make_job("publish", seed=1))
    workers = [
        controller.start(controller.make_job("promote", seed=seed), stops=[Stop("promotion checked", 1)])
        for seed in (0, 1)
    ]
    for worker in workers:
        assert worker.reaches_stop()
    for worker in workers:
        worker.resume()
    controller.finish_workers()
    controller.run(controller.make_job("reconcile"))


def late_pointer(controller: Controller) -> None:
    """A promoter stands before its write of the pointer until all is reconciled to a later promotion; it wakes up, and
    dies with it.
    """
    controller.run(*(controller.make_job("publish", seed=seed) for seed in (0, 1)))
    slow = controller.start(
        controller.make_job("promote", seed=0), stops=[Stop("history written", 1), Stop("pointer written", 1)]
    )
    assert slow.reaches_stop()
    controller.run(controller.make_job("promote", seed=1), controller.make_job("reconcile"))
    slow.resume()
    assert slow.reaches_stop()
    slow.kill()


def crossed_aliases(controller: Controller) -> None:
    """A promoter stands before its write of MLflow's alias, a later one within its own; the first one writes in
    between.
    """
    controller.run(*(controller.make_job("publish", seed=seed) for seed in (0, 1)))
    first = controller.start(controller.make_job("promote", seed=0), stops=[Stop("alias attempted", 1)])
    assert first.reaches_stop()
    second = controller.start(controller.make_job("promote", seed=1), stops=[Stop("alias moved", 1)])
    assert second.reaches_stop()
    first.resume()
    first.end()
    second.resume()
    second.end()
    controller.run(controller.make_job("reconcile"))


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


def without_unique_key(controller: Controller) -> None:
    with psycopg.connect(controller.target.ledger) as connection:
        connection.execute("ALTER TABLE promotion DROP CONSTRAINT promotion_pkey")


class Case(NamedTuple):
    """A scenario, and what it needs: a piece taken out of the workers, or out of the ledger's database."""

    scenario: Callable[[Controller], None]
    prepare: Callable[[], None] | None = None
    damage: Callable[[Controller], None] = lambda controller: None


CASES = {
    "read-back": Case(lost_answer, without_read_back),
    "unique key": Case(same_head, damage=without_unique_key),
    "seq guard": Case(late_pointer, without_seq_guard),
    "lease": Case(crossed_aliases, without_lease),
}


def found(backends: Backends, case: Case, mutated: bool) -> list[Finding]:
    controller = Controller(backends, backends.make_target(1), Counter(), case.prepare if mutated else None)
    if mutated:
        with controller.target.inspect():  # which makes the tables
            case.damage(controller)
    case.scenario(controller)
    controller.finish_workers()
    return controller.examine()


@pytest.mark.parametrize("safeguard", CASES)
def test_with_its_safeguard_nothing_is_lost_or_torn(backends: Backends, safeguard: str) -> None:
    assert found(backends, CASES[safeguard], mutated=False) == []


@pytest.mark.parametrize("safeguard", CASES)
def test_without_its_safeguard_the_checker_reports(backends: Backends, safeguard: str) -> None:
    """Two workers that are set free together may still run one after the other: some tries may find nothing."""
    tries = (found(backends, CASES[safeguard], mutated=True) for _ in range(5))
    assert any(tries), f"chaos would not notice that the {safeguard} is gone"
