"""The lease of a gang: of two runs that work on the same task, one alone writes."""

import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from benchmarks.fixtures.postgres import Postgres
from benchmarks.fixtures.prompts import a_request, a_task, published
from ptpipeline.errors import LeaseHeld, Overtaken
from ptpipeline.gate.spending import Budget, question_digest
from registry.ledger import tables
from registry.ledger.gang import GangLease, open_gangs, working_on
from registry.ledger.ledger import Ledger
from registry.ledger.looks import take_look
from registry.registry import Registry
from tests import processes

ROUNDS = 100
BRIEF, LONG = 0.05, 30.0  # seconds
ROWS = [f"{number:064x}" for number in range(20)]
KEY = "5" * 64  # the training key that both workers have

Pause = Callable[[int], None]


@contextmanager
def working_without_a_heart(ledger: Ledger, name: str) -> Iterator[None]:
    """Hold the task's lease as `working_on` does, without the thread: stopped within a transaction, it would lock
    SQLite for all.
    """
    lease = GangLease(ledger.database, [f"task {name}"], BRIEF)
    lease.take()
    with ledger.database.fenced(lease.keep):
        yield
    lease.release()


def work(ledger: Ledger, name: str, seed: int, pause: Pause) -> None:
    """Fixed work in place of a night over one task: another seed trains to other bits under the same key.

    `pause` is called between all of its steps.
    """
    task, steps = a_task(name), iter(range(9))

    def step() -> None:
        pause(next(steps))

    step()
    ledger.database.check_fences()  # as every checkpoint does
    step()
    tuned = ledger.tuned(name, KEY)
    step()
    if tuned is None:
        tuned = a_request(task, seed).tuned.model_copy(update={"training_key": KEY})
        ledger.intend(name, tuned.digest)
        step()
        ledger.save_tuned(tuned)
    step()
    question = question_digest(tuned.digest, None, "t" * 64, task.policy_digest())
    take_look(ledger, name, question, ROWS, Budget(0.05, None))
    step()
    ledger.add_version(name, tuned.digest)
    step()
    ledger.fulfil(name, tuned.digest)


def return_as_zombie(url: str, stops: list[int], told: Any) -> None:
    """Do the work of each round, standing still behind one of its steps; tell what came of it."""
    ledger = Ledger(url)

    def stand_still(at: int) -> Pause:
        return lambda step: os.kill(os.getpid(), signal.SIGSTOP) if step == at else None

    for number, at in enumerate(stops):
        outcome = "done"
        try:
            with working_without_a_heart(ledger, f"task-{number}"):
                work(ledger, f"task-{number}", 1, stand_still(at))
        except Overtaken as error:
            outcome = str(error)
        told.send(outcome)  # a queue's thread would stand still with it


def _is_stopped(pid: int) -> bool:
    with suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"
    return False


@pytest.fixture
def outcomes(ledger: Ledger) -> Iterator[list[str]]:
    """What came of a worker that stood still in each round, while another did the same work to its end."""
    dice = random.Random(16)
    stops, (heard, told) = [dice.randrange(6) for _ in range(ROUNDS)], processes.Pipe()
    zombie = processes.start(return_as_zombie, ledger.url, stops, told)
    found = []
    try:
        for number in range(ROUNDS):
            while not _is_stopped(int(zombie.pid or 0)):
                time.sleep(0.002)
            with working_on(ledger.database, [f"task-{number}"], wait=10.0, seconds=BRIEF):
                work(ledger, f"task-{number}", 2, lambda _step: None)
            os.kill(int(zombie.pid or 0), signal.SIGCONT)
            found.append(str(heard.recv()))
        yield found
    finally:
        zombie.kill()
        zombie.join()


def test_of_two_workers_one_publishes_and_one_stops_with_a_sentence(ledger: Ledger, outcomes: list[str]) -> None:
    with ledger.database.reading() as connection:
        versions = connection.scalar(select(func.count()).select_from(tables.version))
        looks = connection.scalar(select(func.count()).select_from(tables.look))
    assert (versions, looks) == (ROUNDS, ROUNDS)
    stopped = [sentence for sentence in outcomes if "stood still for more than" in sentence]
    assert len(stopped) == ROUNDS, outcomes
    assert all("another one" in sentence and "took its work over" in sentence for sentence in stopped)


def held(ledger: Ledger, *tasks: str, seconds: float = LONG) -> GangLease:
    lease = GangLease(ledger.database, [f"task {task}" for task in tasks], seconds)
    lease.take()
    return lease


def test_a_living_run_is_not_taken_over(ledger: Ledger) -> None:
    held(ledger, "mood", "topic")
    refused = pytest.raises(LeaseHeld, match="task topic: another run works on it")
    with refused, working_on(ledger.database, ["other", "topic"], wait=0):
        pass
    held(ledger, "other")  # who does not get all holds none


def test_a_dead_process_of_this_machine_is_not_waited_for(plain: Registry) -> None:
    def take_and_die() -> None:
        held(plain.ledger, "mood")

    process = processes.copy(take_and_die)
    process.join()
    held(plain.ledger, "mood")


def test_a_process_of_another_machine_is_waited_for(plain: Registry) -> None:
    """Nobody here knows whether it runs, whoever has its number on this machine."""
    held(plain.ledger, "mood")
    with plain.ledger.database.writing() as connection:
        connection.execute(update(tables.lease).values(owner=f"elsewhere:{2**22 + 1}:0123456789ab"))
    with pytest.raises(LeaseHeld):
        held(plain.ledger, "mood")


def test_a_fence_is_of_its_own_ledger(plain: Registry, tmp_path: Path) -> None:
    other = Ledger(f"sqlite:///{tmp_path}/other.db")
    with working_without_a_heart(plain.ledger, "mood"):
        other.add_version("mood", "a" * 64)
    other.close()


def test_a_worker_that_still_runs_keeps_its_lease(plain: Registry) -> None:
    def take_and_live() -> None:
        held(plain.ledger, "mood")
        time.sleep(60)

    process = processes.copy(take_and_live)
    try:
        while not open_leases(plain.ledger):
            time.sleep(0.005)
        with pytest.raises(LeaseHeld):
            held(plain.ledger, "mood")
    finally:
        process.kill()
        process.join()


def open_leases(ledger: Ledger) -> list[str]:
    with ledger.database.reading() as connection:
        return list(connection.scalars(select(tables.lease.c.name).where(tables.lease.c.owner != "")))


def test_a_lease_lasts_as_long_as_the_work(ledger: Ledger) -> None:
    with working_on(ledger.database, ["mood"], seconds=10 * BRIEF):
        time.sleep(15 * BRIEF)
        with pytest.raises(LeaseHeld):
            held(ledger, "mood")
    held(ledger, "mood")


def test_every_write_to_the_ledger_is_fenced(plain: Registry) -> None:
    version = plain.ledger.version("mood", published(plain, a_task("mood"), 0))
    with working_without_a_heart(plain.ledger, "mood"):
        time.sleep(2 * BRIEF)
        with ThreadPoolExecutor() as another:  # a fence is its thread's
            another.submit(held, plain.ledger, "mood").result()
        writes: list[Callable[[], Any]] = [
            lambda: plain.ledger.intend("mood", version.digest),
            lambda: plain.ledger.add_version("mood", version.digest),
            lambda: take_look(plain.ledger, "mood", "q" * 64, ROWS, Budget(0.05, None)),
            plain.ledger.database.check_fences,
        ]
        for write in writes:
            with pytest.raises(Overtaken):
                write()
        assert plain.ledger.version("mood", 1) == version  # who lost the task may still read


def test_the_gang_of_a_killed_training_is_known(ledger: Ledger) -> None:
    held(ledger, "other")
    lease = held(ledger, "mood", "topic")
    lease.note("g" * 64)
    assert open_gangs(ledger.database, ["mood", "topic", "other"]) == {"mood": "g" * 64, "topic": "g" * 64}
    lease.note(None)
    assert open_gangs(ledger.database, ["mood", "topic"]) == {}


@pytest.mark.servers
def test_a_ledger_that_is_away_is_waited_for(postgres: Postgres, new_database: str) -> None:
    ledger = Ledger(postgres.create_database(f"away-{uuid.uuid4().hex}", new_database))
    postgres.kill()
    back = threading.Timer(0.5, postgres.start)
    back.start()
    with working_on(ledger.database, ["mood"], seconds=LONG):
        assert open_leases(ledger) == ["task mood"]
    back.join()
    ledger.close()


def test_a_lease_that_was_not_taken_is_taken_from_nobody(ledger: Ledger) -> None:
    """A run that got only some of its leases has none of them, whoever takes those meanwhile."""
    wants, other = (GangLease(ledger.database, names, LONG) for names in (["task a", "task b"], ["task b"]))
    other.take()
    with pytest.raises(LeaseHeld):
        wants.take()
    third = GangLease(ledger.database, ["task a"], LONG)
    third.take()
    other.release()
    with pytest.raises(LeaseHeld, match="task a"):
        wants.take()
    third.check()


def test_a_run_that_lost_one_of_its_tasks_works_on_none(ledger: Ledger) -> None:
    """Its gang is another without that task: what it trained on would be of no checkpoint that anybody goes on with."""
    slow = held(ledger, "mood", "topic", seconds=BRIEF)
    time.sleep(2 * BRIEF)
    held(ledger, "topic")
    with pytest.raises(Overtaken, match=r"^task topic: this run stood still"):
        slow.check()


def test_an_overtaken_run_notes_no_gang(plain: Registry) -> None:
    """Else whoever goes on with the task would resume the checkpoint of another gang."""
    slow = GangLease(plain.ledger.database, ["task mood"], BRIEF)
    slow.take()
    time.sleep(2 * BRIEF)
    with working_on(plain.ledger.database, ["mood"], 5.0) as lease:
        lease.note("g" * 64)
        for gang in ("f" * 64, None):
            with pytest.raises(Overtaken):
                slow.note(gang)
        assert open_gangs(plain.ledger.database, ["mood", "topic"]) == {"mood": "g" * 64}
