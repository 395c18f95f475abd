"""Rounds: in each, chance decides what workers do, when they die and what the proxy does; or a scenario is played."""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import registry
from benchmarks.chaos.backends import Backends
from benchmarks.chaos.checker import Finding
from benchmarks.chaos.controller import Controller, WorkerProcess
from benchmarks.chaos.scenarios import SCENARIOS
from benchmarks.chaos.worker import LEASE_SECONDS, Job, Stop, Verb
from benchmarks.faults import seeded
from ptpipeline.errors import PtpError
from ptpipeline.records.versions import PRODUCTION

BLOCK = 50
ROUNDS_PER_TARGET = 10
RANDOM = "random"
VERBS: dict[Verb, int] = {
    "publish": 5,
    "promote": 6,
    "rollback": 3,
    "point": 1,
    "release": 1,
    "reconcile": 1,
    "collect": 1,
}


class Event(NamedTuple):
    """Something that happens to a worker or server, `at` seconds after the round's start."""

    at: float
    name: str
    act: Callable[[], None]


class Outcome(NamedTuple):
    """One round: what was done, what is wrong after it, and who did it."""

    name: str
    notes: list[str]
    findings: list[Finding]
    controller: Controller


def find_steps(*packages: ModuleType) -> set[str]:
    """Return every step that these packages name; without any, those of the registry, which workers reach."""
    folders = [package.__path__[0] for package in packages or (registry,)]
    source = "".join(path.read_text() for folder in folders for path in Path(folder).rglob("*.py"))
    return set(re.findall(r'\breached\("([^"]+)"\)', source))


def schedule(rounds: int, chance: random.Random) -> Iterator[str]:
    """Yield the rounds' names: of every 50, each scenario once, up to half of the rounds; the others are random."""
    while rounds > 0:
        length = min(BLOCK, rounds)
        named = chance.sample(sorted(SCENARIOS), min(len(SCENARIOS), (length + 1) // 2))
        block = named + [RANDOM] * (length - len(named))
        chance.shuffle(block)
        yield from block
        rounds -= length


class Rounds:
    """All rounds of one run."""

    def __init__(self, backends: Backends, seed: int) -> None:
        self.backends, self.chance = backends, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.controllers: list[Controller] = []
        self._steps = sorted(step for step in find_steps() if not step.startswith("rebuild"))
        self._left = 0
        self._span = 3.0  # seconds that workers take on this machine: events happen within them

    def play(self, name: str) -> Outcome:
        """Play one round: the disturbance, one reconcile, the checker."""
        if name == RANDOM:
            controller = self._random_controller()
            notes = self._disturb(controller)
            return Outcome(name, notes, verify(controller), controller)
        scenario = SCENARIOS[name]
        controller = self._make_controller(scenario.tasks, scenario.ledger, scenario.store)
        failures: list[Finding] = []
        try:
            scenario.play(controller, self.chance)
        except (RuntimeError, PtpError) as error:
            failures.append(Finding("torn", f"not played to the end: {error!r}"))
        return Outcome(name, [], [*failures, *verify(controller)], controller)

    def _make_controller(self, tasks: int, ledger: str, store: str) -> Controller:
        self.controllers.append(Controller(self.backends, self.backends.make_target(tasks, ledger, store), self.counts))
        return self.controllers[-1]

    def _random_controller(self) -> Controller:
        """Keep a target for some rounds, so that histories grow; then take an empty one, so that rounds stay short."""
        if not self._left:
            self._left = ROUNDS_PER_TARGET
            self._current = self._make_controller(2, self.chance.choice(("postgresql", "postgresql", "sqlite")), "s3")
            jobs = [self._current.make_job("publish", task, seed=seed) for task in (0, 1) for seed in (0, 1)]
            self._current.run(*jobs)
        self._left -= 1
        return self._current

    def _disturb(self, controller: Controller) -> list[str]:
        share = self.chance.choice((0.0, 0.05, 0.15))
        self.backends.proxy.plan = seeded(self.chance.randrange(2**32), share)
        workers = [self._start_worker(controller) for _ in range(3)]
        reader = self._start_reader(controller)
        planned = [event for worker in workers for event in self._worker_events(worker)] + self._outages()
        events = sorted(planned, key=lambda event: event.at)
        started = time.monotonic()
        for event in events:
            time.sleep(max(0.0, started + event.at - time.monotonic()))
            event.act()
        for worker in workers:
            worker.end()
        reader.kill()
        controller.finish_workers()
        self._span = min(20.0, max(1.0, (self._span + time.monotonic() - started) / 2))
        jobs = [" ".join(job.verb for job in worker.assignment.jobs) for worker in workers]
        return [f"faults {share:.0%}", *jobs, *(f"{event.name} at {event.at:.2f} s" for event in events)]

    def _start_worker(self, controller: Controller) -> WorkerProcess:
        stops = []
        if self.chance.random() < 0.4:
            stops.append(Stop(self.chance.choice(self._steps), self.chance.randint(1, 2)))
        return controller.start(*(self._choose_job(controller) for _ in range(self.chance.randint(2, 3))), stops=stops)

    def _start_reader(self, controller: Controller) -> WorkerProcess:
        """Read every alias of every task, in turn, until it is killed."""
        aliases = [
            controller.make_job("read", task, alias=alias, times=4)
            for task in range(len(controller.target.tasks))
            for alias in (PRODUCTION, "canary")
        ]
        return controller.start(*aliases * 100)

    def _choose_job(self, controller: Controller) -> Job:
        [verb] = self.chance.choices(list(VERBS), list(VERBS.values()))
        alias = (
            "canary"
            if verb == "point" or (verb in ("promote", "rollback") and self.chance.random() < 0.3)
            else PRODUCTION
        )
        return controller.make_job(
            verb,
            self.chance.randrange(len(controller.target.tasks)),
            seed=self.chance.randrange(30),
            alias=alias,
            override=self.chance.random() < 0.1,
        )

    def _worker_events(self, worker: WorkerProcess) -> list[Event]:
        """A worker is killed, or frozen for a while, or resumed if it waits at a stop; or nothing happens to it. Its
        clock may be set meanwhile.
        """
        jump = Event(self.chance.uniform(0.05, self._span), "clock set", worker.jump)
        return [*self._fate(worker), *([jump] if self.chance.random() < 0.3 else [])]

    def _fate(self, worker: WorkerProcess) -> list[Event]:
        at, fate = self.chance.uniform(0.05, self._span), self.chance.random()
        stop = "".join(f" (stop {stop.step} {stop.time})" for stop in worker.assignment.stops)
        if fate < 0.5:
            return [Event(at, f"kill{stop}", worker.kill)]
        if fate < 0.65:
            thaw = at + self.chance.uniform(0.5, LEASE_SECONDS + 2)
            return [Event(at, "freeze", worker.freeze), Event(thaw, f"thaw{stop}", partial(_continue, worker))]
        return [Event(at, f"resume{stop}", partial(_continue, worker))] if stop else []

    def _outages(self) -> list[Event]:
        shares = {"s3": 0.2, "postgresql": 0.25, "mlflow": 0.06}
        return [
            Event(self.chance.uniform(0.1, self._span), f"{server} -9", partial(self.backends.restart, server))
            for server, share in shares.items()
            if self.chance.random() < share
        ]


def _continue(worker: WorkerProcess) -> None:
    worker.thaw()
    worker.resume()


def verify(controller: Controller) -> list[Finding]:
    """Return what is lost, torn or was read wrongly, after one reconcile and the requests that reach the store late."""
    controller.finish_workers()
    controller.backends.proxy.plan = lambda request: None
    controller.backends.wait()
    try:
        undone = [action for action in controller.reconcile() if not action.done and "interrupted" not in action.what]
        controller.backends.proxy.settle()
        return [
            *(Finding("torn", f"reconcile could not: {action.task}: {action.what}") for action in undone),
            *controller.examine(),
        ]
    except PtpError as error:
        return [Finding("torn", f"reconcile or checker failed: {error!r}")]
