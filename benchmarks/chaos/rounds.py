"""Rounds: chance decides who works, who dies, when, and what the proxy does; or a named scenario is played."""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import registry
from benchmarks.chaos.checker import Finding
from benchmarks.chaos.crew import Crew, Worker
from benchmarks.chaos.scenarios import SCENARIOS
from benchmarks.chaos.worker import LEASE_SECONDS, Job, Verb
from benchmarks.chaos.world import World
from benchmarks.faults import seeded
from ptpipeline.errors import PtpError
from ptpipeline.records import PRODUCTION

BLOCK = 50
ROUNDS_A_SITE = 10
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

Event = tuple[float, str, Callable[[], None]]


class Outcome(NamedTuple):
    """One round: what was done, what was found to be wrong, and on whose site."""

    name: str
    notes: list[str]
    findings: list[Finding]
    crew: Crew


def steps_in_source() -> set[str]:
    """Every step that the registry names."""
    source = "".join(path.read_text() for path in Path(registry.__path__[0]).glob("*.py"))
    return set(re.findall(r'\breached\("([^"]+)"\)', source))


def schedule(rounds: int, chance: random.Random) -> Iterator[str]:
    """Names of rounds: of every 50, each scenario once, as far as there is room for half of the rounds; else chance."""
    while rounds > 0:
        length = min(BLOCK, rounds)
        named = chance.sample(sorted(SCENARIOS), min(len(SCENARIOS), (length + 1) // 2))
        block = named + [RANDOM] * (length - len(named))
        chance.shuffle(block)
        yield from block
        rounds -= length


class Rounds:
    """All rounds of one run on one world."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.chance = world, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.crews: list[Crew] = []
        self._steps = sorted(step for step in steps_in_source() if not step.startswith("rebuild"))
        self._left = 0
        self._span = 3.0  # seconds that workers take here: chance strikes within

    def play(self, name: str) -> Outcome:
        """One round: the trouble, one reconcile, the checker."""
        notes: list[str] = []
        if name == RANDOM:
            crew = self._random_crew()
            notes = self._trouble(crew)
        else:
            scenario = SCENARIOS[name]
            crew = self._crew(scenario.tasks, scenario.ledger, scenario.store)
            try:
                scenario.play(crew, self.chance)
            except (RuntimeError, PtpError) as error:
                return Outcome(name, notes, [Finding("torn", f"not played to the end: {error!r}"), *judged(crew)], crew)
        return Outcome(name, notes, judged(crew), crew)

    def _crew(self, tasks: int, ledger: str, store: str) -> Crew:
        self.crews.append(Crew(self.world, self.world.site(tasks, ledger, store), self.counts))
        return self.crews[-1]

    def _random_crew(self) -> Crew:
        """The same site for some rounds, so that histories grow; then a fresh one, so that rounds stay short."""
        if not self._left:
            self._left = ROUNDS_A_SITE
            self._current = self._crew(2, self.chance.choice(("postgresql", "postgresql", "sqlite")), "s3")
            self._current.done(*(self._current.job("publish", task, seed=seed) for task in (0, 1) for seed in (0, 1)))
        self._left -= 1
        return self._current

    def _trouble(self, crew: Crew) -> list[str]:
        share = self.chance.choice((0.0, 0.05, 0.15))
        self.world.proxy.plan = seeded(self.chance.randrange(2**32), share)
        workers = [self._worker(crew) for _ in range(3)]
        events = sorted(
            [event for worker in workers for event in self._fates(worker)] + self._outages(), key=lambda event: event[0]
        )
        started = time.monotonic()
        for at, _, act in events:
            time.sleep(max(0.0, started + at - time.monotonic()))
            act()
        crew.gather()
        self._span = min(20.0, max(1.0, (self._span + time.monotonic() - started) / 2))
        jobs = [" ".join(f"{job.verb}" for job in worker.orders.jobs) for worker in workers]
        return [f"faults {share:.0%}", *jobs, *(f"{what} at {at:.2f} s" for at, what, _ in events)]

    def _worker(self, crew: Crew) -> Worker:
        stops = [(self.chance.choice(self._steps), self.chance.randint(1, 2))] if self.chance.random() < 0.4 else []
        return crew.start(*(self._job(crew) for _ in range(self.chance.randint(2, 3))), stops=stops)

    def _job(self, crew: Crew) -> Job:
        [verb] = self.chance.choices(list(VERBS), list(VERBS.values()))
        alias = (
            "canary"
            if verb == "point" or (verb in ("promote", "rollback") and self.chance.random() < 0.3)
            else PRODUCTION
        )
        return crew.job(
            verb,
            self.chance.randrange(len(crew.site.tasks)),
            seed=self.chance.randrange(30),
            alias=alias,
            override=self.chance.random() < 0.1,
        )

    def _fates(self, worker: Worker) -> list[Event]:
        """A worker dies, is frozen for a while, or (where it stands at a step) is let go."""
        at, fate = self.chance.uniform(0.05, self._span), self.chance.random()
        stop = "".join(f" (stop {step} {nth})" for step, nth in worker.orders.stops)
        if fate < 0.5:
            return [(at, f"kill{stop}", worker.kill)]
        if fate < 0.65:
            freeze: Event = (at, "freeze", worker.freeze)
            return [freeze, (at + self.chance.uniform(0.5, LEASE_SECONDS + 2), f"thaw{stop}", partial(_on, worker))]
        return [(at, f"release{stop}", partial(_on, worker))] if stop else []

    def _outages(self) -> list[Event]:
        shares = {"s3": 0.2, "postgresql": 0.25, "mlflow": 0.06}
        return [
            (self.chance.uniform(0.1, self._span), f"{server} -9", partial(self.world.restart, server))
            for server, share in shares.items()
            if self.chance.random() < share
        ]


def _on(worker: Worker) -> None:
    worker.thaw()
    worker.release()


def judged(crew: Crew) -> list[Finding]:
    """What one reconcile leaves lost or torn, late requests to the store included."""
    crew.gather()
    crew.world.proxy.plan = lambda request: None
    crew.world.wait()
    try:
        undone = [action for action in crew.reconcile() if not action.done and "interrupted" not in action.what]
        crew.world.proxy.settle()
        return [
            *(Finding("torn", f"reconcile could not: {action.task}: {action.what}") for action in undone),
            *crew.examined(),
        ]
    except PtpError as error:
        return [Finding("torn", f"reconcile or checker failed: {error!r}")]
