"""A worker: a process that does jobs on a registry, logs what was acknowledged, and waits at chosen steps."""

import json
import logging
import os
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.chaos.target import Target
from benchmarks.fixtures.prompts import a_request, a_snapshot, a_task, a_verdict, an_artifact
from ptpipeline.errors import PtpError
from ptpipeline.records.base import now
from ptpipeline.records.versions import PRODUCTION, Promotion, PromptVersion
from registry.failpoints import watch
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger import tombstone
from registry.ledger.ledger import Release
from registry.mlflow import store as mlflow_store
from registry.registry import Registry
from registry.repair.rebuild import rebuild
from registry.repair.reconcile import reconcile
from registry.versions import projection
from registry.versions.promotion import GATED, Cause, point, promote, promote_release, rollback
from registry.versions.provenance import Dossier, write_dossier
from registry.versions.publish import register, stage

# A killed process leaves its lease or tombstone behind, and the next process waits until it expires: here after seconds
# instead of half a minute. A request to MLflow must end within the lease, as in the product's own settings.
LEASE_SECONDS = 4.0
MLFLOW_SECONDS = 3
MLFLOW_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
KEEP = Retention(candidates=3, grace=timedelta(0))

Verb = Literal["publish", "promote", "rollback", "point", "release", "reconcile", "collect", "rebuild"]


class Stop(NamedTuple):
    """A step at which a worker waits, the `time`-th time that it gets there (from 1)."""

    step: str
    time: int


@dataclass(frozen=True)
class Job:
    """One call of the registry. `name` is unique, and the reason of the promotion that the job makes.

    `seed` makes the prompt to publish; for a promotion it chooses one of the versions. Every fifth prompt fails its
    gate; `override` promotes it nevertheless.
    """

    name: str
    verb: Verb
    task: str
    seed: int = 0
    alias: str = PRODUCTION
    override: bool = False


@dataclass(frozen=True)
class Assignment:
    """What one worker does.

    It waits at each of `stops` until the controller resumes it. `limit`: bytes that a file may have (a full disk);
    `prepare` runs first, in the worker.
    """

    target: Target
    jobs: tuple[Job, ...]
    log: Path
    stops: tuple[Stop, ...] = ()
    limit: int | None = None
    prepare: Callable[[], None] | None = None
    environment: dict[str, str] = field(default_factory=dict)


class Log:
    """Lines of JSON, on disk before `write` returns; the limit on file sizes does not apply to them."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, **line: Any) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        os.write(self._file, json.dumps({"at": round(time.time(), 3), **line}).encode() + b"\n")
        os.fsync(self._file)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def work(assignment: Assignment, control: Connection) -> None:
    """Do all jobs of the assignment; at a stop, send the step's name on `control` and wait for an answer."""
    os.environ.update(assignment.environment)
    logging.getLogger().addHandler(logging.NullHandler())  # hides the warnings about injected faults
    log = Log(assignment.log)
    _watch(assignment.stops, control, log)
    if assignment.prepare:
        assignment.prepare()
    if assignment.limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (assignment.limit, resource.RLIM_INFINITY))
    registry: Registry | None = None
    with shorten_timeouts():
        for job in assignment.jobs:
            log.write(job=job.name, began=job.verb)
            try:
                registry = registry or assignment.target.open()
                done = do_job(registry, job)
            except PtpError as error:
                log.write(job=job.name, error=type(error).__name__, message=str(error))
            except Exception:  # noqa: BLE001 - no user should see any other error, so each is a finding
                log.write(job=job.name, error="crash", message=traceback.format_exc())
            else:
                log.write(job=job.name, done=done)


@contextmanager
def shorten_timeouts(mlflow_seconds: int = MLFLOW_SECONDS) -> Iterator[None]:
    """Use short leases and tombstones in this process until the block ends, and this timeout for MLflow's answers."""
    before = projection.LEASE_SECONDS, tombstone.SECONDS, mlflow_store.REQUEST_SECONDS, os.environ.get(MLFLOW_TIMEOUT)
    projection.LEASE_SECONDS = tombstone.SECONDS = LEASE_SECONDS
    mlflow_store.REQUEST_SECONDS = MLFLOW_SECONDS
    os.environ[MLFLOW_TIMEOUT] = str(mlflow_seconds)
    try:
        yield
    finally:
        projection.LEASE_SECONDS, tombstone.SECONDS, mlflow_store.REQUEST_SECONDS, timeout = before
        os.environ.update({MLFLOW_TIMEOUT: timeout}) if timeout else os.environ.pop(MLFLOW_TIMEOUT)


def _watch(stops: tuple[Stop, ...], control: Connection, log: Log) -> None:
    times: Counter[str] = Counter()

    def reached(step: str) -> None:
        times[step] += 1
        log.write(step=step)
        if Stop(step, times[step]) in stops:
            control.send(step)
            control.recv()

    watch(reached)


def do_job(registry: Registry, job: Job) -> list[dict[str, Any]]:
    """Do the job; return what the registry acknowledged, versions and promotions as JSON."""
    task, cause = a_task(job.task), Cause(f"worker of {job.verb}", job.name, job.override)
    if job.verb == "publish":
        return [publish(registry, job.task, job.seed).to_json()]
    if job.verb == "reconcile":
        reconcile(registry, {job.task: task}, job.task)
        return []
    if job.verb == "collect":
        collect(registry, KEEP, apply=True, task=job.task)
        return []
    if job.verb == "rebuild":
        rebuild(registry)
        return []
    if job.verb == "rollback":
        return [rollback(registry, job.task, cause, alias=job.alias).to_json()]
    if job.verb == "release":
        return [promotion.to_json() for promotion in _promote_release(registry, job, cause)]
    version = choose_version(registry, job.task, job.seed)
    judge(registry, version, job.alias)
    if job.verb == "point":
        return [point(registry, version, cause, job.alias).to_json()]
    return [promote(registry, task, version.number, cause, job.alias).to_json()]


def _promote_release(registry: Registry, job: Job, cause: Cause) -> list[Promotion]:
    """Promote together, for each task, the version that the seed chooses."""
    versions = [choose_version(registry, task, job.seed) for task in registry.ledger.tasks()]
    for version in versions:
        judge(registry, version, PRODUCTION)
    release = Release(
        name=job.name,
        actor=cause.actor,
        reason=cause.reason,
        versions={version.task: version.number for version in versions},
        at=now(),
    )
    return promote_release(registry, {version.task: a_task(version.task) for version in versions}, release, cause)


def passes_gate(seed: int) -> bool:
    """Whether the prompt of that seed passes its gate."""
    return seed % 5 != 4


def publish(registry: Registry, name: str, seed: int) -> PromptVersion:
    """Do what a run does with a trained prompt: stage its bytes, judge it, register it."""
    task = a_task(name)
    registry.ledger.save_snapshot(a_snapshot(task))
    stage(registry.ledger, registry.store, an_artifact(task, seed))
    head = registry.ledger.head(name, PRODUCTION)
    return register(registry, a_request(task, seed, head.digest if head else None, passes_gate(seed)))


def choose_version(registry: Registry, task: str, seed: int) -> PromptVersion:
    """Return the version of the prompt with that seed, else any one that the seed chooses."""
    versions = registry.ledger.versions(task, limit=None)
    wanted = an_artifact(a_task(task), seed).digest
    return next((version for version in versions if version.digest == wanted), None) or registry.ledger.version(
        task, seed % max(1, len(versions)) + 1
    )


def judge(registry: Registry, version: PromptVersion, alias: str) -> None:
    """Save the gate's decision against the current champion, as a run does before it promotes: first in the store."""
    ledger, task = registry.ledger, a_task(version.task)
    head, report = ledger.head(task.name, alias), ledger.report_of(task.name, version.digest)
    publication, champion = ledger.publication(task.name, version.digest), head.digest if head else None
    judged = champion in [verdict.champion for verdict in ledger.verdicts(task.name, version.digest)]
    if alias in GATED and report and publication and not judged and champion != version.digest:
        verdict = a_verdict(task, report, champion, report.prompt.figures()["accuracy"] >= task.gate.minimum)
        write_dossier(registry.store, Dossier(publication=publication, report=report, verdict=verdict))
        ledger.save_verdict(verdict)
