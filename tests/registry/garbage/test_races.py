"""Garbage collection beside others, step by step: what wins against it, that any step of it may be the last, and that
no order of things loses a root.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import stamina
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select

from benchmarks.fixtures.prompts import a_task, an_artifact, published
from ptpipeline.errors import LeaseHeld, PromotionRefused
from ptpipeline.prompts.artifact import read_artifact, write_artifact
from ptpipeline.records.serving import Holding
from ptpipeline.serving.servers import report_holdings
from ptpipeline.storage import FolderStore, S3Store
from ptpipeline.task.task import Task
from registry import failpoints
from registry.garbage.collect import collect
from registry.ledger import tables, tombstone
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.versions.promotion import promote, rollback
from registry.versions.publish import stage
from tests import processes
from tests.registry.garbage.test_collect import ANYWAY, ME, TWO, is_whole, left, shown, version_of, watching

# ---------------------------------------------------------------- races, step by step


def test_a_promotion_between_listing_and_burying_wins(registry: Registry, task: Task) -> None:
    for seed in range(4):
        published(registry, task, seed)
    first = version_of(registry, task, 0).digest
    moved: list[int] = []

    def promoted(step: str) -> None:
        if step == "collect buried" and not moved:  # the first buried is version 2: version 1 was only listed
            moved.append(promote(registry, task, 1, ANYWAY).version)

    with watching(promoted):
        assert shown(collect(registry, TWO, apply=True, task=task.name)) == {("version", 2)}
    assert is_whole(registry, task, 0)
    assert registry.ledger.head(task.name, "production").digest == first  # type: ignore[union-attr]


def test_what_is_buried_cannot_be_promoted_or_published(registry: Registry, task: Task) -> None:
    for seed in range(3):
        published(registry, task, seed)
    verified = read_artifact(registry.store, task.name, an_artifact(task, 0).digest)
    refused: list[Exception] = []

    def ask(step: str) -> None:
        for question in (
            lambda: promote(registry, task, 1, ANYWAY),
            lambda: stage(registry.ledger, registry.store, verified),
        ):
            try:
                question()
            except (PromotionRefused, LeaseHeld) as error:
                refused.append(error)

    with watching(ask):
        collect(registry, TWO, apply=True, task=task.name)
    assert [type(error) for error in refused] == [PromotionRefused, LeaseHeld] * 3
    assert registry.ledger.history(task.name) == []


def test_a_commit_behind_the_burial_is_refused_by_the_ledger(ledger: Ledger) -> None:
    from tests.registry.ledger.test_ledger import a_move

    digest = "a" * 64
    ledger.add_version("mood", digest)
    assert tombstone.Tombstone(ledger.database, "mood", digest).bury(lambda _: False)
    with pytest.raises(PromotionRefused, match="garbage collection"):
        ledger.append(a_move(0))
    assert ledger.history("mood") == []


@pytest.mark.parametrize("step", ["collect buried", "collect manifest deleted", "collect deleted"])
def test_a_publish_that_takes_over_a_sleeping_collector_is_whole(
    registry: Registry, task: Task, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    orphan = an_artifact(task, 0)
    write_artifact(registry.store, orphan)
    done: list[int] = []

    def publish(reached: str) -> None:
        if reached == step and not done:
            done.append(published(registry, task, 0))

    with watching(publish):
        assert collect(registry, TWO, apply=True, task=task.name) == []
    assert done == [1]
    assert is_whole(registry, task, 0)
    assert len(left(registry.store, orphan)) == 5  # tensors, manifest, dossier, plot, page


class Meddled(FolderStore):
    """A store in which something happens right before a deletion, as if the request had been long on its way."""

    meddle: Callable[[str], None] = staticmethod(lambda _key: None)

    def delete(self, key: str) -> None:
        self.meddle(key)
        super().delete(key)


@pytest.mark.parametrize("late", ["manifest.json", "prompt.safetensors"])
def test_a_deletion_that_arrives_behind_a_publish_is_undone(
    plain: Registry, task: Task, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    store = Meddled(Path(plain.store.url.removeprefix("file://")))
    slow = Registry(plain.ledger, store)
    write_artifact(plain.store, an_artifact(task, 0))
    done: list[int] = []

    def publish(key: str) -> None:
        if key.endswith(late) and not done:
            done.append(published(plain, task, 0))

    store.meddle = publish  # type: ignore[method-assign]
    assert collect(slow, TWO, apply=True) == []
    assert done == [1]
    assert is_whole(plain, task, 0)


def test_a_collector_that_lost_its_tombstone_deletes_no_more(
    plain: Registry, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    store, deleted = Meddled(Path(plain.store.url.removeprefix("file://"))), list[str]()
    store.meddle = deleted.append  # type: ignore[method-assign]
    write_artifact(plain.store, an_artifact(task, 0))
    with watching(lambda step: plain.ledger.intend(task.name, an_artifact(task, 0).digest)):
        assert collect(Registry(plain.ledger, store), TWO, apply=True) == []
    assert deleted == []


# ---------------------------------------------------------------- killed


def _collect(ledger: str, store: str, endpoint: str | None, task: str, step: str) -> None:
    from ptpipeline.storage import open_store

    tombstone.SECONDS = 0.3
    failpoints.watch(lambda reached: os.kill(os.getpid(), signal.SIGKILL) if reached == step else None)
    collect(Registry(Ledger(ledger), open_store(store, endpoint)), TWO, apply=True, task=task)


@pytest.mark.parametrize("step", ["collect buried", "collect manifest deleted", "collect deleted"])
def test_killed_at_a_step_a_rerun_converges(registry: Registry, task: Task, step: str) -> None:
    for seed in range(3):
        published(registry, task, seed)
    write_artifact(registry.store, an_artifact(task, 7))
    endpoint = registry.store._client.meta.endpoint_url if isinstance(registry.store, S3Store) else None
    child = processes.start(_collect, registry.ledger.url, registry.store.url, endpoint, task.name, step)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert [seed for seed in range(3) if is_whole(registry, task, seed)] in ([0, 1, 2], [1, 2])
    deadline = time.monotonic() + 30
    while collect(registry, TWO, task=task.name) and time.monotonic() < deadline:
        collect(registry, TWO, apply=True, task=task.name)
    assert [version.collected for version in reversed(registry.ledger.versions(task.name))] == [True, False, False]
    assert not left(registry.store, an_artifact(task, 0)) + left(registry.store, an_artifact(task, 7))
    assert (
        stamina.retry(on=LeaseHeld, attempts=None, timeout=30)(published)(registry, task, 0) == 1
    )  # the killed one's tombstone may stand yet
    assert is_whole(registry, task, 0)
    with registry.ledger.database.reading() as connection:
        assert connection.execute(select(tables.tombstone)).all() == []


# ---------------------------------------------------------------- any order


class RootsStay(RuleBasedStateMachine):
    """Whatever happens in whatever order: what was promoted, is reported, is new or was published last is there."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.registry = Registry(
            Ledger(f"sqlite:///{self.folder.name}/ledger.db"), FolderStore(Path(self.folder.name) / "store")
        )
        self.task = a_task()
        self.numbers: list[int] = []  # seeds in the order of their versions
        self.promoted: set[int] = set()
        self.reported: set[int] = set()
        self.last: set[int] = set()
        self.gone: set[int] = set()

    def teardown(self) -> None:
        self.registry.ledger.close()
        self.folder.cleanup()

    def roots(self) -> set[int]:
        return self.promoted | self.reported | self.last | set(self.numbers[-2:])

    @rule(seed=st.integers(0, 6))
    def publish(self, seed: int) -> None:
        published(self.registry, self.task, seed)
        if seed not in self.numbers:
            self.numbers.append(seed)
        self.last = {seed}
        self.gone.discard(seed)

    @precondition(lambda self: self.numbers)
    @rule(pick=st.integers(0, 6), alias=st.sampled_from(["production", "canary"]))
    def promote(self, pick: int, alias: str) -> None:
        number = pick % len(self.numbers)
        seed = self.numbers[number]
        if seed in self.gone:
            with pytest.raises(PromotionRefused):
                promote(self.registry, self.task, number + 1, ANYWAY, alias)
        else:
            promote(self.registry, self.task, number + 1, ANYWAY, alias)
            self.promoted.add(seed)

    @precondition(lambda self: self.promoted)
    @rule(pick=st.integers(0, 6))
    def roll_back(self, pick: int) -> None:
        history = self.registry.ledger.history(self.task.name)
        row = history[pick % len(history)]
        assert rollback(self.registry, self.task.name, ME, row.version, row.alias).version == row.version

    @precondition(lambda self: self.numbers)
    @rule(pick=st.integers(0, 6))
    def serve(self, pick: int) -> None:
        seed = self.numbers[pick % len(self.numbers)]
        report_holdings(self.registry.store, "host", [Holding(self.task.name, an_artifact(self.task, seed).digest)])
        self.reported = {seed}

    @rule()
    def collect(self) -> None:
        collect(self.registry, TWO, apply=True)
        self.gone |= set(self.numbers) - self.roots()

    @invariant()
    def roots_are_whole_and_the_rest_is_as_it_was_left(self) -> None:
        if not hasattr(self, "numbers"):
            return
        for number, seed in enumerate(self.numbers, 1):
            assert is_whole(self.registry, self.task, seed) == (seed not in self.gone)
            assert self.registry.ledger.version(self.task.name, number).collected == (seed in self.gone)
        assert not self.gone & self.promoted


TestRootsStay = RootsStay.TestCase
TestRootsStay.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
