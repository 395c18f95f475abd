"""Named scenarios: what chance rarely does, arranged with stops. One reconcile and the checker follow each."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from benchmarks.chaos.controller import Controller, WorkerProcess
from benchmarks.chaos.worker import LEASE_SECONDS, MLFLOW_SECONDS, Job, Stop, choose_version, judge
from benchmarks.faults import Fault, scripted
from benchmarks.fixtures.prompts import a_task, an_artifact
from ptpipeline.prompts.artifact import write_artifact
from ptpipeline.records.versions import PRODUCTION
from registry.mlflow.client import connect
from registry.registry import Registry


class Scenario(NamedTuple):
    """What is played, and on what kind of target."""

    play: Callable[[Controller, random.Random], None]
    tasks: int = 1
    ledger: Literal["postgresql", "sqlite"] = "postgresql"
    store: Literal["s3", "folder"] = "s3"


def find_stops(controller: Controller, job: Job) -> list[Stop]:
    """Do the job undisturbed and return the steps that its worker passes, in order; RuntimeError if it fails."""
    worker = controller.start(job)
    worker.end()
    if not any("done" in line for line in worker.lines()):
        raise RuntimeError(f"{job} failed undisturbed: {worker.lines()}")
    steps = [line["step"] for line in worker.lines() if "step" in line]
    return [Stop(step, steps[: place + 1].count(step)) for place, step in enumerate(steps)]


def _publishes(controller: Controller, *seeds: int, task: int = 0) -> list[Job]:
    return [controller.make_job("publish", task, seed=seed) for seed in seeds]


def _promotes(controller: Controller, *seeds: int, alias: str = PRODUCTION) -> list[Job]:
    return [controller.make_job("promote", seed=seed, alias=alias) for seed in seeds]


def _publish_steps(controller: Controller, chance: random.Random) -> None:
    """Publishes of one task at the same time, each killed at another of its steps."""
    stops = find_stops(controller, controller.make_job("publish", seed=0))
    workers = [
        controller.start(controller.make_job("publish", seed=seed), stops=[stop])
        for seed, stop in enumerate(stops, start=1)
    ]
    _kill_at_stops(workers)


def _promote_steps(controller: Controller, chance: random.Random) -> None:
    """A promotion is killed at each of its steps, on an alias of its own; then one of production at a random step."""
    controller.run(*_publishes(controller, 0, 1))
    stops = find_stops(controller, controller.make_job("promote", seed=0))
    for number, stop in enumerate(stops):
        _kill_at(controller, controller.make_job("promote", seed=1, alias=f"canary-{number}"), stop)
    _kill_at(controller, controller.make_job("promote", seed=1), chance.choice(stops))


def _release_steps(controller: Controller, chance: random.Random) -> None:
    """A release of two tasks is killed before its commit, after it and during its projection: all of it, or nothing."""
    controller.start(*_publishes(controller, 0, 1, task=0))
    controller.run(*_publishes(controller, 0, 1, task=1))
    controller.finish_workers()
    stops = find_stops(controller, controller.make_job("release", seed=0))
    for stop in (Stop("promotion checked", 2), Stop("release committed", 1)):
        _kill_at(controller, controller.make_job("release", seed=1), stop)
    _kill_at(
        controller,
        controller.make_job("release", seed=0),
        chance.choice(stops[stops.index(Stop("release committed", 1)) :]),
    )


def _rollback_steps(controller: Controller, chance: random.Random) -> None:
    """A rollback is killed at each of its steps, on an alias of its own."""
    controller.run(*_publishes(controller, 0, 1), *_promotes(controller, 0, 1))
    for number, stop in enumerate(find_stops(controller, controller.make_job("rollback"))):
        alias = f"canary-{number}"
        controller.run(*_promotes(controller, 0, 1, alias=alias))
        _kill_at(controller, controller.make_job("rollback", alias=alias), stop)


def _reconcile_steps(controller: Controller, chance: random.Random) -> None:
    """A reconcile that mends an interrupted promotion is killed at each of its steps, on a task of its own."""
    everyone = range(len(controller.target.tasks))
    promoters = [
        controller.start(
            controller.make_job("publish", task, seed=0),
            controller.make_job("promote", task, seed=0),
            stops=[Stop("promotion committed", 1)],
        )
        for task in everyone
    ]
    _kill_at_stops(promoters)
    stops = find_stops(controller, controller.make_job("reconcile", 0))
    workers = [
        controller.start(controller.make_job("reconcile", task), stops=[stop])
        for task, stop in zip(everyone[1:], stops, strict=False)
    ]
    _kill_at_stops(workers)


def _kill_at(controller: Controller, job: Job, stop: Stop) -> None:
    _kill_at_stops([controller.start(job, stops=[stop])])


def _kill_at_stops(workers: Sequence[WorkerProcess]) -> None:
    for worker in workers:
        worker.reaches_stop()
        worker.kill()


def _stalled(controller: Controller, then: Literal["woken", "killed"]) -> None:
    """A promoter waits between its commit and its write of MLflow's alias while another one promotes; then it writes.

    The killed one dies after its write, before it records it. Two reconciles must not take this for a person's edit.
    """
    controller.run(*_publishes(controller, 0, 1, 2), controller.make_job("promote", seed=0))
    slow = controller.start(
        controller.make_job("promote", seed=1),
        stops=[Stop("alias attempted", 1), *([Stop("alias written", 1)] if then == "killed" else [])],
    )
    slow.reaches_stop()
    controller.run(controller.make_job("promote", seed=2))
    controller.reconcile()
    slow.resume()
    if then == "killed":
        slow.reaches_stop()
        slow.kill()
    slow.end()
    controller.reconcile()
    time.sleep(LEASE_SECONDS + MLFLOW_SECONDS)  # an edit counts if it is seen twice, that far apart


def _stopped_holders(controller: Controller, chance: random.Random) -> None:
    """Promoters are suspended (SIGSTOP) at each step behind their commit, on an alias of their own, for longer than a
    lease; others, whose clock is set, promote these aliases meanwhile; then the first ones go on. A reader watches.
    """
    controller.run(*_publishes(controller, 0, 1, 2))
    stops = find_stops(controller, controller.make_job("promote", seed=0))
    stops = stops[stops.index(Stop("promotion committed", 1)) :]
    aliases = [f"canary-{number}" for number in range(len(stops))]
    reads = [controller.make_job("read", alias=alias, times=2) for alias in aliases] * 100
    reader = controller.start(*reads)
    slow = [
        controller.start(controller.make_job("promote", seed=1, alias=alias), stops=[stop])
        for alias, stop in zip(aliases, stops, strict=True)
    ]
    for worker in slow:
        worker.reaches_stop()
        worker.freeze()
    time.sleep(LEASE_SECONDS)
    others = controller.start(*(controller.make_job("promote", seed=2, alias=alias) for alias in aliases))
    time.sleep(chance.uniform(0.1, 0.5))
    others.jump()
    others.end()
    for worker in slow:
        worker.resume()
        worker.thaw()
    for worker in slow:
        worker.end()
    reader.kill()


def _postgresql_killed(controller: Controller, chance: random.Random) -> None:
    """PostgreSQL dies while promotions commit: each happened or did not, no matter what answer its promoter got."""
    controller.run(*_publishes(controller, 0, 1))
    for number in range(4):
        workers = [
            controller.start(
                controller.make_job("promote", seed=seed, alias=f"canary-{number}"),
                stops=[Stop("promotion checked", 1)],
            )
            for seed in (0, 1)
        ]
        for worker in workers:
            worker.reaches_stop()
        for worker in workers:
            worker.resume()
        time.sleep(chance.uniform(0, 0.03))
        controller.backends.restart("postgresql")


def _mlflow_dropped(controller: Controller, chance: random.Random) -> None:
    """MLflow's database is lost with everything in it."""
    controller.run(*_publishes(controller, 0, 1), *_promotes(controller, 0, 1), controller.make_job("rollback"))
    controller.backends.drop_mlflow()
    controller.run(controller.make_job("promote", seed=1))
    controller.backends.wait()


def _full_disk(controller: Controller, chance: random.Random) -> None:
    """No file that a worker writes may grow beyond a limit: an object of the store, or SQLite's file of the ledger."""
    controller.run(*_publishes(controller, 0, 1), *_promotes(controller, 0))
    sizes = (150, 800, 1500) if controller.target.store.startswith("file:") else (4_000, 30_000, 100_000)
    for number, size in enumerate(sizes):
        worker = controller.start(
            controller.make_job("publish", seed=2 + number),
            controller.make_job("promote", seed=1),
            controller.make_job("rollback"),
            limit=chance.randint(size // 2, size),
        )
        worker.end()


def _orphan_collected(controller: Controller, chance: random.Random) -> None:
    """Publishes find old orphans while these are collected: each publish waits at a step, later each collector."""
    _write_orphan(controller, 0)
    stops = find_stops(controller, controller.make_job("publish", seed=0))
    publishers = []
    for seed, stop in enumerate(stops, start=1):
        _write_orphan(controller, seed)
        publishers.append(controller.start(controller.make_job("publish", seed=seed), stops=[stop]))
    for worker in publishers:
        worker.reaches_stop()
    controller.run(controller.make_job("collect"))
    for worker in publishers:
        worker.resume()
    controller.finish_workers()
    collectors = []
    for task, step in enumerate(("collect buried", "collect manifest deleted", "collect deleted"), start=1):
        _write_orphan(controller, 0, task)
        collectors.append(controller.start(controller.make_job("collect", task), stops=[Stop(step, 1)]))
    for worker in collectors:
        worker.reaches_stop()
    controller.run(*(controller.make_job("publish", task, seed=0) for task in (1, 2, 3)))
    chance.choice(collectors).kill()
    time.sleep(LEASE_SECONDS)  # the tombstones have expired, so these publishes succeed while the collectors wait
    controller.run(*(controller.make_job("publish", task, seed=0) for task in (1, 2, 3)))
    for worker in collectors:
        worker.resume()


def _late_delete(controller: Controller, chance: random.Random) -> None:
    """A deletion by the collector gets no answer, and reaches the store after the prompt was published again."""
    controller.run(*_publishes(controller, 0, 1, 2, 3))
    controller.backends.proxy.plan = scripted([None] * chance.randrange(3) + [Fault.LATE], method="DELETE")
    controller.run(controller.make_job("collect"), controller.make_job("publish", seed=0))


def _write_orphan(controller: Controller, seed: int, task: int = 0) -> None:
    """Write a prompt's bytes without an intent, as an old ptpipeline or a restored backup leaves them."""
    with controller.target.inspect() as registry:
        write_artifact(registry.store, an_artifact(a_task(controller.target.tasks[task]), seed))


def _ledger_restored(controller: Controller, chance: random.Random) -> None:
    """The ledger is restored from an older backup: lost numbers are not used again, and the store brings them back."""
    for task in (0, 1):
        controller.run(*_publishes(controller, 0, 1, task=task), controller.make_job("promote", task, seed=0))
    backup = controller.backends.back_up(controller.target)
    controller.run(
        controller.make_job("publish", 0, seed=2),
        controller.make_job("promote", 0, seed=2),
        controller.make_job("rollback", 0),
        controller.make_job("promote", 1, seed=1),
        controller.make_job("point", 1, alias="canary"),
    )
    controller.backends.restore(controller.target, backup)
    controller.run(
        controller.make_job("publish", 0, seed=3),
        controller.make_job("promote", 0, seed=1),
        controller.make_job("rollback", 1),
        controller.make_job("collect", 0),
        controller.make_job("reconcile", 0),
    )
    for stop in (Stop("rebuild dossiers taken", 1), Stop("rebuild task taken", 1)):
        _kill_at(controller, controller.make_job("rebuild"), stop)
    failed = controller.run(controller.make_job("rebuild"))
    if failed:
        raise RuntimeError(f"the ledger is not rebuilt: {failed}")


def _human_edit(controller: Controller, chance: random.Random) -> None:
    """A person sets production in MLflow's UI: first to a version that passes the gate, then to one that fails."""
    controller.acknowledged.edited.add(controller.target.tasks[0])
    controller.run(*_publishes(controller, 0, 1, 4), controller.make_job("promote", seed=0))
    for seed in (1, 4):
        with controller.target.inspect() as registry:
            judge(registry, choose_version(registry, controller.target.tasks[0], seed), PRODUCTION)
            _set_in_mlflow(registry, controller.target.tasks[0], seed)
        controller.run(controller.make_job("reconcile"))
        time.sleep(LEASE_SECONDS + MLFLOW_SECONDS)
        _kill_at(controller, controller.make_job("reconcile"), Stop("promotion committed", 1))
        with controller.target.inspect() as registry:
            head = registry.ledger.head(controller.target.tasks[0], PRODUCTION)
        if head is None or (head.seq, head.actor) != (2, "mlflow-ui"):
            raise RuntimeError(
                f"after an edit to seed {seed} the head is {head!r}; expected: the first edit is promoted, the "
                "second is undone"
            )


def _set_in_mlflow(registry: Registry, task: str, seed: int) -> None:
    if registry.mlflow is None:
        raise RuntimeError("no MLflow")
    number = registry.mlflow.find(task, an_artifact(a_task(task), seed).digest)
    connect(registry.mlflow.uri).set_registered_model_alias(task, PRODUCTION, number)


SCENARIOS: dict[str, Scenario] = {
    "publish-steps": Scenario(_publish_steps),
    "promote-steps": Scenario(_promote_steps),
    "release-steps": Scenario(_release_steps, tasks=2),
    "rollback-steps": Scenario(_rollback_steps),
    "reconcile-steps": Scenario(_reconcile_steps, tasks=5),
    "stalled-promoter": Scenario(lambda controller, _: _stalled(controller, "woken")),
    "stalled-promoter-killed": Scenario(lambda controller, _: _stalled(controller, "killed")),
    "stopped-holders": Scenario(_stopped_holders),
    "stopped-holders-sqlite": Scenario(_stopped_holders, ledger="sqlite"),
    "orphan-collected": Scenario(_orphan_collected, tasks=4),
    "late-delete": Scenario(_late_delete),
    "postgresql-killed": Scenario(_postgresql_killed),
    "mlflow-dropped": Scenario(_mlflow_dropped),
    "ledger-restored": Scenario(_ledger_restored, tasks=2),
    "human-edit": Scenario(_human_edit),
    "full-disk-store": Scenario(_full_disk, store="folder"),
    "full-disk-ledger": Scenario(_full_disk, ledger="sqlite"),
}
