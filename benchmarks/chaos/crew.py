"""The controller's side of a site: starting, stopping and killing workers, and remembering what was acknowledged to
them.
"""

import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from benchmarks.chaos.checker import Finding, Remembered, check, kept
from benchmarks.chaos.site import Site
from benchmarks.chaos.worker import Job, Orders, Stop, Verb, work
from benchmarks.chaos.world import World
from ptpipeline.records import Promotion, PromptVersion
from registry.repair.reconcile import reconcile
from registry.versions.mlflow_alias import Action
from tests.registry.prompts import a_task, an_artifact

PATIENCE_SECONDS = 120.0
CONFLICTS = ("PromotionConflict", "PromotionRefused")

# Workers are forked by a server process that has imported everything once: a start takes milliseconds.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["benchmarks.chaos.worker", "mlflow.tracking", "boto3", "sqlalchemy.dialects.postgresql.psycopg"]
)


class Worker:
    """One process at work."""

    def __init__(self, orders: Orders, counts: Counter[str]) -> None:
        self.orders, self._counts, self.stuck = orders, counts, False
        self._control, theirs = _processes.Pipe()
        self._process = _processes.Process(target=work, args=(orders, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def stands(self) -> bool:
        """Wait until it stands at the step where it is to stop; False where it ended before."""
        try:
            return bool(self._control.poll(PATIENCE_SECONDS) and self._control.recv())
        except (EOFError, ConnectionError):
            return False

    def release(self) -> None:
        """Let it go on from its step, or never stop there; nothing where it is no more."""
        with suppress(ConnectionError):
            self._control.send("on")

    def kill(self) -> None:
        """kill -9; counted where it still lived."""
        if self._process.is_alive():
            self._counts["kills"] += 1
            self._process.kill()
        self._process.join()

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on as if nothing had happened."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.is_alive() and self._process.pid:
            os.kill(self._process.pid, number)

    def end(self) -> None:
        """Let it finish; killed where it does not, which is a finding."""
        self.thaw()
        self._process.join(PATIENCE_SECONDS)
        self.stuck = self._process.is_alive()
        self.kill()

    def lines(self) -> list[dict[str, Any]]:
        """What it logged; a line that it was killed in is none."""
        text = self.orders.log.read_text() if self.orders.log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class Crew:
    """Everything that was asked of one site, and what it answered. `prepare` runs in every worker, before its work."""

    def __init__(
        self, world: World, site: Site, counts: Counter[str], prepare: Callable[[], None] | None = None
    ) -> None:
        self.world, self.site, self.counts, self.prepare = world, site, counts, prepare
        self.remembered = Remembered()
        self.steps: dict[Verb, Counter[str]] = {}
        self._workers: list[Worker] = []
        self._folder = world.folder / f"logs-{site.tasks[0]}"
        self._folder.mkdir()
        self._jobs: dict[str, Job] = {}
        self._names = 0

    def job(self, verb: Verb, task: int = 0, **more: Any) -> Job:
        """A job with a name of its own, on the task of that number."""
        self._names += 1
        job = Job(f"job-{self._names}", verb, self.site.tasks[task], **more)
        self._jobs[job.name] = job
        return job

    def start(self, *jobs: Job, stops: Sequence[Stop] = (), limit: int | None = None) -> Worker:
        """A worker that does these jobs, up to its first stop."""
        log = self._folder / f"{len(list(self._folder.iterdir()))}-{jobs[0].name}.jsonl"
        worker = Worker(Orders(self.site, jobs, log, tuple(stops), limit, self.prepare, dict(os.environ)), self.counts)
        log.touch()
        self._workers.append(worker)
        return worker

    def done(self, *jobs: Job) -> list[str]:
        """Do these jobs now, undisturbed; returns what was refused or failed."""
        worker = self.start(*jobs)
        worker.end()
        return [f"{line['error']}: {line['message']}" for line in worker.lines() if "error" in line]

    def gather(self) -> None:
        """End all workers and remember what they were told."""
        for worker in self._workers:
            worker.end()
            if worker.stuck:
                self.remembered.crashes.append(
                    f"a worker did not end within {PATIENCE_SECONDS:.0f} s: {worker.lines()}"
                )
            verb: Verb = worker.orders.jobs[0].verb
            for line in worker.lines():
                verb = line.get("began", verb)
                if "step" in line:
                    self.steps.setdefault(verb, Counter())[line["step"]] += 1
                self._remember(line)
        self._workers.clear()

    def _remember(self, line: dict[str, Any]) -> None:
        job = self._jobs.get(line.get("job", ""))
        if job and "began" in line:
            self.remembered.asked.add(job.name)
        if job and line.get("error") == "crash":
            self.remembered.crashes.append(f"{job}: {line['message']}")
        if line.get("error") in CONFLICTS:
            self.counts["conflicts"] += 1
        for done in line.get("done", []):
            self.counts["acknowledged"] += 1
            if job and job.verb == "publish":
                self.remembered.versions.append(PromptVersion.model_validate(done))
            else:
                self.remembered.promotions.append(Promotion.model_validate(done))

    def story(self) -> list[str]:
        """What the newest workers logged, for whoever has to see why."""
        newest = sorted(self._folder.iterdir(), key=lambda path: int(path.name.split("-")[0]))[-8:]
        return [line for path in newest for line in (f"{path.name}:", *path.read_text().splitlines())]

    def reconcile(self) -> list[Action]:
        """The one reconcile that has to mend everything, undisturbed."""
        with self.site.looked_at() as registry:
            return reconcile(registry, {task: a_task(task) for task in self.site.tasks})

    def examined(self) -> list[Finding]:
        """What is lost or torn, interrupted publishes among it that a repeat does not finish."""
        with self.site.looked_at() as registry:
            found = check(registry, self.site.tasks, self.remembered)
            for intent in registry.ledger.intents():
                found += self._repeated(intent.task, intent.digest)
            return found

    def kept(self) -> list[Finding]:
        """What of all that was acknowledged the ledger has lost since."""
        with self.site.looked_at() as registry:
            return kept(registry, self.site.tasks, self.remembered)

    def _repeated(self, task: str, digest: str) -> list[Finding]:
        seeds = {job.seed for job in self._jobs.values() if job.verb == "publish" and job.task == task}
        seed = next((seed for seed in seeds if an_artifact(a_task(task), seed).digest == digest), None)
        if seed is None:
            return [Finding("torn", f"{task}: an intent for {digest[:12]}, which nobody publishes")]
        failed = self.done(self.job("publish", self.site.tasks.index(task), seed=seed))
        return (
            [Finding("torn", f"{task}: a repeat does not finish the interrupted publish of seed {seed}: {failed}")]
            if failed
            else []
        )
