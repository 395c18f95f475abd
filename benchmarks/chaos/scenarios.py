"""Named scenarios: what chance rarely does, arranged with barriers; what follows each is one reconcile and the
checker.
"""

import random
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from benchmarks.chaos.crew import Crew
from benchmarks.chaos.worker import LEASE_SECONDS, MLFLOW_SECONDS, Job, Stop, chosen, judge
from benchmarks.faults import Fault, scripted
from ptpipeline.prompts.artifact import write_artifact
from ptpipeline.records import PRODUCTION
from registry.mlflow.store import connect
from registry.registry import Registry
from tests.registry.prompts import a_task, an_artifact


class Scenario(NamedTuple):
    """What is played, and on which site."""

    play: Callable[[Crew, random.Random], None]
    tasks: int = 1
    ledger: Literal["postgresql", "sqlite"] = "postgresql"
    store: Literal["s3", "folder"] = "s3"


def steps_of(crew: Crew, job: Job) -> list[Stop]:
    """The steps that a worker reaches with this job, undisturbed, in order, each with which time; RuntimeError where it
    fails.
    """
    worker = crew.start(job)
    worker.end()
    if not any("done" in line for line in worker.lines()):
        raise RuntimeError(f"{job} failed undisturbed: {worker.lines()}")
    steps = [line["step"] for line in worker.lines() if "step" in line]
    return [(step, steps[: place + 1].count(step)) for place, step in enumerate(steps)]


def _publish_steps(crew: Crew, chance: random.Random) -> None:
    """A publish is killed at each of its steps, all of them at work on one task."""
    stops = steps_of(crew, crew.job("publish", seed=0))
    workers = [crew.start(crew.job("publish", seed=seed), stops=[stop]) for seed, stop in enumerate(stops, start=1)]
    for worker in workers:
        worker.stands()
        worker.kill()


def _promote_steps(crew: Crew, chance: random.Random) -> None:
    """A promotion is killed at each of its steps: of production, then of aliases of their own."""
    crew.done(crew.job("publish", seed=0), crew.job("publish", seed=1))
    stops = steps_of(crew, crew.job("promote", seed=0))
    for number, stop in enumerate(stops):
        _killed_at(crew, crew.job("promote", seed=1, alias=f"canary-{number}"), stop)
    _killed_at(crew, crew.job("promote", seed=1), chance.choice(stops))


def _release_steps(crew: Crew, chance: random.Random) -> None:
    """A release of two tasks is killed before and behind its commit, and while it is projected: all of it happened, or
    nothing.
    """
    crew.start(*(crew.job("publish", 0, seed=seed) for seed in (0, 1)))
    crew.done(*(crew.job("publish", 1, seed=seed) for seed in (0, 1)))
    crew.gather()
    stops = steps_of(crew, crew.job("release", seed=0))
    for stop in (("promotion checked", 2), ("release committed", 1)):
        _killed_at(crew, crew.job("release", seed=1), stop)
    _killed_at(crew, crew.job("release", seed=0), chance.choice(stops[stops.index(("release committed", 1)) :]))


def _rollback_steps(crew: Crew, chance: random.Random) -> None:
    """A rollback is killed at each of its steps, on an alias of its own."""
    crew.done(
        crew.job("publish", seed=0), crew.job("publish", seed=1), *(crew.job("promote", seed=seed) for seed in (0, 1))
    )
    for number, stop in enumerate(steps_of(crew, crew.job("rollback"))):
        alias = f"canary-{number}"
        crew.done(*(crew.job("promote", seed=seed, alias=alias) for seed in (0, 1)))
        _killed_at(crew, crew.job("rollback", alias=alias), stop)


def _reconcile_steps(crew: Crew, chance: random.Random) -> None:
    """A reconcile that has an interrupted promotion to mend is killed at each of its steps, on a task of its own."""
    everyone = range(len(crew.site.tasks))
    promoters = [
        crew.start(
            crew.job("publish", task, seed=0), crew.job("promote", task, seed=0), stops=[("promotion committed", 1)]
        )
        for task in everyone
    ]
    for worker in promoters:
        worker.stands()
        worker.kill()
    stops = steps_of(crew, crew.job("reconcile", 0))
    workers = [
        crew.start(crew.job("reconcile", task), stops=[stop]) for task, stop in zip(everyone[1:], stops, strict=False)
    ]
    for worker in workers:
        worker.stands()
        worker.kill()


def _killed_at(crew: Crew, job: Job, stop: Stop) -> None:
    worker = crew.start(job, stops=[stop])
    worker.stands()
    worker.kill()


def _stalled(crew: Crew, then: Literal["woken", "killed"]) -> None:
    """A promoter stands between its commit and its write of MLflow's alias while another promotes; then its write comes
    late.

    The one that is killed dies with its write done and not noted. What the two reconciles see must not pass for an
    edit.
    """
    crew.done(*(crew.job("publish", seed=seed) for seed in (0, 1, 2)), crew.job("promote", seed=0))
    slow = crew.start(
        crew.job("promote", seed=1),
        stops=[("alias attempted", 1), *([("alias written", 1)] if then == "killed" else [])],
    )
    slow.stands()
    crew.done(crew.job("promote", seed=2))
    crew.reconcile()
    slow.release()
    if then == "killed":
        slow.stands()
        slow.kill()
    slow.end()
    crew.reconcile()
    time.sleep(LEASE_SECONDS + MLFLOW_SECONDS)  # an edit counts where it is seen twice, that far apart


def _postgresql_killed(crew: Crew, chance: random.Random) -> None:
    """PostgreSQL dies while promotions commit: each happened or did not, whatever its promoter was told."""
    crew.done(crew.job("publish", seed=0), crew.job("publish", seed=1))
    for number in range(4):
        workers = [
            crew.start(crew.job("promote", seed=seed, alias=f"canary-{number}"), stops=[("promotion checked", 1)])
            for seed in (0, 1)
        ]
        for worker in workers:
            worker.stands()
        for worker in workers:
            worker.release()
        time.sleep(chance.uniform(0, 0.03))
        crew.world.restart("postgresql")


def _mlflow_dropped(crew: Crew, chance: random.Random) -> None:
    """MLflow's database is lost with everything in it."""
    crew.done(
        *(crew.job("publish", seed=seed) for seed in (0, 1)),
        crew.job("promote", seed=0),
        crew.job("promote", seed=1),
        crew.job("rollback"),
    )
    crew.world.drop_mlflow()
    crew.done(crew.job("promote", seed=1))
    crew.world.wait()


def _full_disk(crew: Crew, chance: random.Random) -> None:
    """No file of a worker may grow beyond so many bytes: of the store's objects, and of the ledger's file where it is
    one.
    """
    crew.done(crew.job("publish", seed=0), crew.job("publish", seed=1), crew.job("promote", seed=0))
    sizes = (150, 800, 1500) if crew.site.store.startswith("file:") else (4_000, 30_000, 100_000)
    for number, size in enumerate(sizes):
        worker = crew.start(
            crew.job("publish", seed=2 + number),
            crew.job("promote", seed=1),
            crew.job("rollback"),
            limit=chance.randint(size // 2, size),
        )
        worker.end()


def _orphan_collected(crew: Crew, chance: random.Random) -> None:
    """Publishes find old orphans while these are being collected: each stands at a step of its own, or the collector
    does.
    """
    _orphan(crew, 0)
    stops = steps_of(crew, crew.job("publish", seed=0))
    publishers = []
    for seed, stop in enumerate(stops, start=1):
        _orphan(crew, seed)
        publishers.append(crew.start(crew.job("publish", seed=seed), stops=[stop]))
    for worker in publishers:
        worker.stands()
    crew.done(crew.job("collect"))
    for worker in publishers:
        worker.release()
    crew.gather()
    collectors = []
    for task, step in enumerate(("collect buried", "collect manifest deleted", "collect deleted"), start=1):
        _orphan(crew, 0, task)
        collectors.append(crew.start(crew.job("collect", task), stops=[(step, 1)]))
    for worker in collectors:
        worker.stands()
    crew.done(*(crew.job("publish", task, seed=0) for task in (1, 2, 3)))
    chance.choice(collectors).kill()
    time.sleep(LEASE_SECONDS)  # now the tombstones have expired, and the publishes go through under sleeping collectors
    crew.done(*(crew.job("publish", task, seed=0) for task in (1, 2, 3)))
    for worker in collectors:
        worker.release()


def _late_delete(crew: Crew, chance: random.Random) -> None:
    """A deletion of the collector loses its answer, and comes to the store once more when the prompt is
    published anew.
    """
    crew.done(*(crew.job("publish", seed=seed) for seed in (0, 1, 2, 3)))
    crew.world.proxy.plan = scripted([None] * chance.randrange(3) + [Fault.LATE], method="DELETE")
    crew.done(crew.job("collect"), crew.job("publish", seed=0))


def _orphan(crew: Crew, seed: int, task: int = 0) -> None:
    """The bytes of a prompt that no intent names, as an old ptpipeline or a restored backup leaves them."""
    with crew.site.looked_at() as registry:
        write_artifact(registry.store, an_artifact(a_task(crew.site.tasks[task]), seed))


def _ledger_restored(crew: Crew, chance: random.Random) -> None:
    """The ledger is restored from an older backup; what it forgot is not given out again, and the store brings
    it back.
    """
    for task in (0, 1):
        crew.done(*(crew.job("publish", task, seed=seed) for seed in (0, 1)), crew.job("promote", task, seed=0))
    backup = crew.world.back_up(crew.site)
    crew.done(
        crew.job("publish", 0, seed=2),
        crew.job("promote", 0, seed=2),
        crew.job("rollback", 0),
        crew.job("promote", 1, seed=1),
        crew.job("point", 1, alias="canary"),
    )
    crew.world.restore(crew.site, backup)
    crew.done(
        crew.job("publish", 0, seed=3),
        crew.job("promote", 0, seed=1),
        crew.job("rollback", 1),
        crew.job("collect", 0),
        crew.job("reconcile", 0),
    )
    for stop in (("rebuild dossiers taken", 1), ("rebuild task taken", 1)):
        _killed_at(crew, crew.job("rebuild"), stop)
    failed = crew.done(crew.job("rebuild"))
    if failed:
        raise RuntimeError(f"the ledger is not rebuilt: {failed}")


def _human(crew: Crew, chance: random.Random) -> None:
    """A person sets production in MLflow's UI: to what the gate lets through, then to what it refuses."""
    crew.remembered.humans.add(crew.site.tasks[0])
    crew.done(*(crew.job("publish", seed=seed) for seed in (0, 1, 4)), crew.job("promote", seed=0))
    for seed in (1, 4):
        with crew.site.looked_at() as registry:
            judge(registry, chosen(registry, crew.site.tasks[0], seed), PRODUCTION)
            _set_in_mlflow(registry, crew.site.tasks[0], seed)
        crew.done(crew.job("reconcile"))
        time.sleep(LEASE_SECONDS + MLFLOW_SECONDS)
        _killed_at(crew, crew.job("reconcile"), ("promotion committed", 1))
        with crew.site.looked_at() as registry:
            head = registry.ledger.head(crew.site.tasks[0], PRODUCTION)
        if head is None or (head.seq, head.actor) != (2, "mlflow-ui"):
            raise RuntimeError(
                f"after an edit to seed {seed} the head is {head!r}, where the first edit had to be promoted "
                "and the second put back"
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
    "stalled-promoter": Scenario(lambda crew, _: _stalled(crew, "woken")),
    "stalled-promoter-killed": Scenario(lambda crew, _: _stalled(crew, "killed")),
    "orphan-collected": Scenario(_orphan_collected, tasks=4),
    "late-delete": Scenario(_late_delete),
    "postgresql-killed": Scenario(_postgresql_killed),
    "mlflow-dropped": Scenario(_mlflow_dropped),
    "ledger-restored": Scenario(_ledger_restored, tasks=2),
    "human-edit": Scenario(_human),
    "full-disk-store": Scenario(_full_disk, store="folder"),
    "full-disk-ledger": Scenario(_full_disk, ledger="sqlite"),
}
