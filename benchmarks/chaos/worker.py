"""A worker: a process that does jobs on a registry, logs what was acknowledged, and stands still at the step it was
told.
"""

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
from typing import Any, Literal

from benchmarks.chaos.site import Site
from ptpipeline.errors import PtpError
from ptpipeline.records import PRODUCTION, Promotion, PromptVersion, now
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
from tests.registry.prompts import a_request, a_snapshot, a_task, a_verdict, an_artifact

# A killed process leaves its lease or its tombstone behind, and whoever comes next waits for its end: seconds in place
# of half a minute. A request to MLflow has to end within the lease, as in the product's own settings.
LEASE_SECONDS = 4.0
MLFLOW_SECONDS = 3
MLFLOW_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
KEEP = Retention(candidates=3, grace=timedelta(0))

Stop = tuple[str, int]
Verb = Literal["publish", "promote", "rollback", "point", "release", "reconcile", "collect", "rebuild"]


@dataclass(frozen=True)
class Job:
    """One thing to ask of the registry. `name` is unique, and the reason of the promotion that comes of it.

    `seed` makes the prompt that is published; for a promotion it picks one of the versions there are. Every fifth
    prompt fails its gate; `override` promotes it nevertheless.
    """

    name: str
    verb: Verb
    task: str
    seed: int = 0
    alias: str = PRODUCTION
    override: bool = False


@dataclass(frozen=True)
class Orders:
    """What one worker does.

    `stops`: the steps where it stands until it is let go, each by name and which time; `limit`: bytes that a file may
    have (a full disk); `prepare` runs first, in the worker.
    """

    site: Site
    jobs: tuple[Job, ...]
    log: Path
    stops: tuple[Stop, ...] = ()
    limit: int | None = None
    prepare: Callable[[], None] | None = None
    environment: dict[str, str] = field(default_factory=dict)


class Log:
    """Lines of JSON, on disk before `write` returns; the disk is never full for them."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, **line: Any) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        os.write(self._file, json.dumps({"at": round(time.time(), 3), **line}).encode() + b"\n")
        os.fsync(self._file)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def work(orders: Orders, control: Connection) -> None:
    """The worker's whole life: `control` gets a step's name when the worker stands there, and lets it go on."""
    os.environ.update(orders.environment)
    logging.getLogger().addHandler(logging.NullHandler())  # warnings of what chaos does are no news
    log = Log(orders.log)
    _watch(orders.stops, control, log)
    if orders.prepare:
        orders.prepare()
    if orders.limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (orders.limit, resource.RLIM_INFINITY))
    registry: Registry | None = None
    with hastened():
        for job in orders.jobs:
            log.write(job=job.name, began=job.verb)
            try:
                registry = registry or orders.site.opened()
                done = do(registry, job)
            except PtpError as error:
                log.write(job=job.name, error=type(error).__name__, message=str(error))
            except Exception:  # noqa: BLE001 - whatever it is, no user should see it, so it is a finding
                log.write(job=job.name, error="crash", message=traceback.format_exc())
            else:
                log.write(job=job.name, done=done)


@contextmanager
def hastened(patience: int = MLFLOW_SECONDS) -> Iterator[None]:
    """Shorter leases and tombstones in this process until the block ends, and so many seconds of patience with
    MLflow.
    """
    before = projection.LEASE_SECONDS, tombstone.SECONDS, mlflow_store.REQUEST_SECONDS, os.environ.get(MLFLOW_TIMEOUT)
    projection.LEASE_SECONDS = tombstone.SECONDS = LEASE_SECONDS
    mlflow_store.REQUEST_SECONDS = MLFLOW_SECONDS
    os.environ[MLFLOW_TIMEOUT] = str(patience)
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
        if (step, times[step]) in stops:
            control.send(step)
            control.recv()

    watch(reached)


def do(registry: Registry, job: Job) -> list[dict[str, Any]]:
    """Do the job; returns what the registry acknowledged, versions and promotions as JSON."""
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
        return [promotion.to_json() for promotion in _released(registry, job, cause)]
    version = chosen(registry, job.task, job.seed)
    judge(registry, version, job.alias)
    if job.verb == "point":
        return [point(registry, version, cause, job.alias).to_json()]
    return [promote(registry, task, version.number, cause, job.alias).to_json()]


def _released(registry: Registry, job: Job, cause: Cause) -> list[Promotion]:
    """Every task's version that the seed picks, promoted together."""
    versions = [chosen(registry, task, job.seed) for task in registry.ledger.tasks()]
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


def passes(seed: int) -> bool:
    """Whether the prompt made of that seed passes its gate."""
    return seed % 5 != 4


def publish(registry: Registry, name: str, seed: int) -> PromptVersion:
    """What a run does once a prompt is trained: stage its bytes, judge it, register it."""
    task = a_task(name)
    registry.ledger.save_snapshot(a_snapshot(task))
    stage(registry.ledger, registry.store, an_artifact(task, seed))
    head = registry.ledger.head(name, PRODUCTION)
    return register(registry, a_request(task, seed, head.digest if head else None, passes(seed)))


def chosen(registry: Registry, task: str, seed: int) -> PromptVersion:
    """The version of the prompt with that seed, else any that the seed picks."""
    versions = registry.ledger.versions(task, limit=None)
    wanted = an_artifact(a_task(task), seed).digest
    return next((version for version in versions if version.digest == wanted), None) or registry.ledger.version(
        task, seed % max(1, len(versions)) + 1
    )


def judge(registry: Registry, version: PromptVersion, alias: str) -> None:
    """The gate's decision against the champion of now, as a run makes it before it promotes; in the store before the
    ledger.
    """
    ledger, task = registry.ledger, a_task(version.task)
    head, report = ledger.head(task.name, alias), ledger.report_of(task.name, version.digest)
    publication, champion = ledger.publication(task.name, version.digest), head.digest if head else None
    judged = champion in [verdict.champion for verdict in ledger.verdicts(task.name, version.digest)]
    if alias in GATED and report and publication and not judged and champion != version.digest:
        verdict = a_verdict(task, report, champion, report.prompt.figures()["accuracy"] >= task.gate.minimum)
        write_dossier(registry.store, Dossier(publication=publication, report=report, verdict=verdict))
        ledger.save_verdict(verdict)
