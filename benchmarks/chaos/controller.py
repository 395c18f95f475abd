"""The controller of one target: starts, stops and kills workers, and keeps what was acknowledged to them."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from benchmarks.chaos.backends import Backends
from benchmarks.chaos.checker import Acknowledged, Finding, check, find_lost
from benchmarks.chaos.history import Alias, Operation
from benchmarks.chaos.target import Target
from benchmarks.chaos.worker import Assignment, Job, Stop, Verb, work
from benchmarks.fixtures.prompts import a_task, an_artifact
from ptpipeline.records.versions import Promotion, PromptVersion
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.repair.prompts import INTERRUPTED
from registry.repair.reconcile import reconcile
from registry.versions.mlflow_alias import Action

PATIENCE_SECONDS = 120.0
CONFLICTS = ("PromotionConflict", "PromotionRefused")

# Workers are forked by a server process that has imported everything once: a start takes milliseconds.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["benchmarks.chaos.worker", "mlflow.tracking", "boto3", "sqlalchemy.dialects.postgresql.psycopg"]
)


class WorkerProcess:
    """One worker's process, as the controller sees it."""

    def __init__(self, assignment: Assignment, counts: Counter[str]) -> None:
        self.assignment, self._counts, self.stuck = assignment, counts, False
        self._control, theirs = _processes.Pipe()
        self._process = _processes.Process(target=work, args=(assignment, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def reaches_stop(self) -> bool:
        """Wait until it stands at a stop; return False if it ended before."""
        try:
            return bool(self._control.poll(PATIENCE_SECONDS) and self._control.recv())
        except (EOFError, ConnectionError):
            return False

    def resume(self) -> None:
        """Let it continue from its stop, or pass it later without waiting; do nothing if it has ended."""
        with suppress(ConnectionError):
            self._control.send("on")

    def kill(self) -> None:
        """kill -9; counted if it was alive."""
        if self._process.is_alive():
            self._counts["kills"] += 1
            self._process.kill()
        self._process.join()

    def freeze(self) -> None:
        """Suspend it wherever it is."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run again after `freeze`."""
        self._signal(signal.SIGCONT)

    def jump(self) -> None:
        """Set its wall clock to another time, if it has begun."""
        if self.lines():
            self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.is_alive() and self._process.pid:
            os.kill(self._process.pid, number)

    def end(self) -> None:
        """Let it finish; if it does not, mark it as stuck and kill it."""
        self.thaw()
        self._process.join(PATIENCE_SECONDS)
        self.stuck = self._process.is_alive()
        self.kill()

    def lines(self) -> list[dict[str, Any]]:
        """What it logged; a line that was cut by its death does not count."""
        text = self.assignment.log.read_text() if self.assignment.log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class Controller:
    """Gives jobs on one target to workers and collects their answers. `prepare` runs first in every worker."""

    def __init__(
        self, backends: Backends, target: Target, counts: Counter[str], prepare: Callable[[], None] | None = None
    ) -> None:
        self.backends, self.target, self.counts, self.prepare = backends, target, counts, prepare
        self.acknowledged = Acknowledged()
        self.refused: set[str] = set()  # the jobs that met a conflict
        self.steps: dict[Verb, Counter[str]] = {}
        self._workers: list[WorkerProcess] = []
        self._folder = backends.folder / f"logs-{target.tasks[0]}"
        self._folder.mkdir()
        self._jobs: dict[str, Job] = {}

    def make_job(self, verb: Verb, task: int = 0, **more: Any) -> Job:
        """Make a job with a name of its own, on the task of that number."""
        job = Job(f"job-{len(self._jobs) + 1}", verb, self.target.tasks[task], **more)
        self._jobs[job.name] = job
        return job

    def start(self, *jobs: Job, stops: Sequence[Stop] = (), limit: int | None = None) -> WorkerProcess:
        """Start a worker on these jobs."""
        log = self._folder / f"{len(list(self._folder.iterdir()))}-{jobs[0].name}.jsonl"
        assignment = Assignment(self.target, jobs, log, tuple(stops), limit, self.prepare, dict(os.environ))
        worker = WorkerProcess(assignment, self.counts)
        log.touch()
        self._workers.append(worker)
        return worker

    def run(self, *jobs: Job) -> list[str]:
        """Do these jobs now, undisturbed; return the errors."""
        worker = self.start(*jobs)
        worker.end()
        return [f"{line['error']}: {line['message']}" for line in worker.lines() if "error" in line]

    def finish_workers(self) -> None:
        """End all workers and collect what was acknowledged to them."""
        for worker in self._workers:
            worker.end()
            if worker.stuck:
                self.acknowledged.crashes.append(
                    f"a worker did not end within {PATIENCE_SECONDS:.0f} s: {worker.lines()}"
                )
            verb: Verb = worker.assignment.jobs[0].verb
            for line in worker.lines():
                verb = line.get("began", verb)
                if "step" in line:
                    self.steps.setdefault(verb, Counter())[line["step"]] += 1
                self._collect(line)
        self._workers.clear()

    def _collect(self, line: dict[str, Any]) -> None:
        job = self._jobs.get(line.get("job", ""))
        if job and "read" in line:
            self._witness_read(job, line)
        elif job and "began" in line:
            self.acknowledged.started.add(job.name)
            self.acknowledged.witnesses.began.setdefault(job.name, line["at"])
        for name, seq in line.get("shown", {}).items():
            self.acknowledged.witnesses.show(Alias(*name.split("@")), seq, line["at"])
        if job and line.get("error") == "crash":
            self.acknowledged.crashes.append(f"{job}: {line['message']}")
        if line.get("error") in CONFLICTS:
            self.counts["conflicts"] += 1
            self.refused.add(line["job"])
        for record in line.get("done", []):
            self.counts["acknowledged"] += 1
            if job and job.verb == "publish":
                self.acknowledged.versions.append(PromptVersion.model_validate(record))
            else:
                self.acknowledged.promotions.append(Promotion.model_validate(record))

    def _witness_read(self, job: Job, line: dict[str, Any]) -> None:
        alias, witnesses = Alias(job.task, job.alias), self.acknowledged.witnesses
        reads = witnesses.reads.setdefault(alias, [])
        if line["wrong"]:
            witnesses.wrong.append(f"{job.task}@{job.alias}: {line['wrong']}")
        else:
            reads.append(Operation("read", line["read"], line["began"], line["at"], job.name))

    def newest_logs(self) -> list[str]:
        """What the newest eight workers logged, to explain a finding."""
        newest = sorted(self._folder.iterdir(), key=lambda path: int(path.name.split("-")[0]))[-8:]
        return [line for path in newest for line in (f"{path.name}:", *path.read_text().splitlines())]

    def reconcile(self) -> list[Action]:
        """Run the one reconcile that has to mend everything, undisturbed."""
        with self.target.inspect() as registry:
            heads = registry.ledger.heads()
            actions = reconcile(registry, {task: a_task(task) for task in self.target.tasks})
            if all(action.done or "interrupted" in action.what for action in actions):
                for head in heads:
                    self.acknowledged.witnesses.show(Alias(head.task, head.alias), head.seq, time.monotonic())
            return actions

    def examine(self) -> list[Finding]:
        """Return what is lost or torn, also once the interrupted publishes were repeated."""
        findings = self._check()
        if interrupted := [finding for finding in findings if INTERRUPTED in finding.what]:
            self._repeat_promotions()
            self._fix()
            left = [finding for finding in self._check() if "kind='dossier'" in finding.what]
            findings = [finding for finding in findings if finding not in interrupted] + left
        with self.target.inspect() as registry:
            intents = registry.ledger.intents()
        for intent in intents:
            findings += self._repeat_publish(intent.task, intent.digest)
        self.finish_workers()
        return [*findings, *(self._check() if intents else [])]

    def find_lost(self) -> list[Finding]:
        """Return what was acknowledged and is not in the ledger any more."""
        with self.target.inspect() as registry:
            return find_lost(registry, self.target.tasks, self.acknowledged)

    def _check(self) -> list[Finding]:
        with self.target.inspect() as registry:
            return check(registry, self.target.tasks, self.acknowledged)

    def _repeat_promotions(self) -> None:
        """Promote again what was interrupted: between store and ledger a verdict ends with the run that gave it."""
        ended = {row.reason for row in self.acknowledged.promotions} | self.refused
        begun = self.acknowledged.started - ended
        interrupted = [job for job in self._jobs.values() if job.verb == "promote" and job.name in begun]
        for job in interrupted:
            self.run(self.make_job("promote", self.target.tasks.index(job.task), seed=job.seed, alias=job.alias))
        self.finish_workers()

    def _fix(self) -> None:
        """Do what `ptp doctor --fix` does: a repeat leaves a verdict that is not against the champion any more."""
        with self.target.inspect() as registry:
            fix(registry, {task: a_task(task) for task in self.target.tasks}, examine(registry))

    def _repeat_publish(self, task: str, digest: str) -> list[Finding]:
        seeds = {job.seed for job in self._jobs.values() if job.verb == "publish" and job.task == task}
        seed = next((seed for seed in seeds if an_artifact(a_task(task), seed).digest == digest), None)
        if seed is None:
            return [Finding("torn", f"{task}: an intent for {digest[:12]}, which no job publishes")]
        errors = self.run(self.make_job("publish", self.target.tasks.index(task), seed=seed))
        if not errors:
            return []
        return [Finding("torn", f"{task}: a repeat does not finish the interrupted publish of seed {seed}: {errors}")]
