"""A worker: a process that does jobs on a registry, logs what was acknowledged, and waits at chosen steps."""

import itertools
import json
import logging
import os
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from benchmarks.chaos.target import Target
from benchmarks.fixtures.prompts import a_request, a_snapshot, a_task, a_verdict, an_artifact
from ptpipeline.errors import NotFound, PtpError, Transient
from ptpipeline.records import base
from ptpipeline.records.base import now
from ptpipeline.records.versions import PRODUCTION, Pointer, Promotion, PromptVersion
from ptpipeline.serving.resolver import resolve
from ptpipeline.storage import ObjectStore, Stored
from ptpipeline.storage.addresses import AliasPointer, parse
from registry.card.card import Provenance
from registry.failpoints import watch
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger import tombstone
from registry.ledger.ledger import Release
from registry.mlflow import client as mlflow_client
from registry.registry import Registry
from registry.repair.rebuild import rebuild
from registry.repair.reconcile import reconcile
from registry.versions import projection
from registry.versions.commit import Cause
from registry.versions.promotion import GATED, point, promote, promote_release, rollback
from registry.versions.publish import keep_verdict, register, stage

# A killed process leaves its lease or tombstone behind, and the next process waits until it expires: here after seconds
# instead of half a minute. A request to MLflow must end within the lease, as in the product's own settings.
LEASE_SECONDS = 4.0
MLFLOW_SECONDS = 3
MLFLOW_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
KEEP = Retention(candidates=3, grace=timedelta(0))

READ_EVERY = 0.05  # seconds between two reads
CLOCK_JUMPS = (-3600.0, 3600.0, 0.0, 90_000.0)  # seconds that a worker's clock is off, one after the other

Verb = Literal["publish", "promote", "rollback", "point", "release", "reconcile", "collect", "rebuild", "read"]


class Stop(NamedTuple):
    """A step at which a worker waits, the `time`-th time that it gets there (from 1)."""

    step: str
    time: int


@dataclass(frozen=True)
class Job:
    """One call of the registry. `name` is unique, and the reason of the promotion that the job makes.

    `seed` makes the prompt to publish; for a promotion it chooses one of the versions. Every fifth prompt fails its
    gate; `override` promotes it nevertheless. A `read` job reads the alias `times` times.
    """

    name: str
    verb: Verb
    task: str
    seed: int = 0
    alias: str = PRODUCTION
    override: bool = False
    times: int = 1


class Answer(NamedTuple):
    """What the registry acknowledged, versions and promotions as JSON, and which promotion of which `task@alias` the
    store shows since.
    """

    records: list[dict[str, Any]]
    shown: dict[str, int]


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
        os.write(self._file, json.dumps({"at": time.monotonic(), **line}).encode() + b"\n")
        os.fsync(self._file)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def work(assignment: Assignment, control: Connection) -> None:
    """Do all jobs of the assignment; at a stop, send the step's name on `control` and wait for an answer."""
    os.environ.update(assignment.environment)
    logging.getLogger().addHandler(logging.NullHandler())  # hides the warnings about injected faults
    log = Log(assignment.log)
    _watch(assignment.stops, control, log)
    signal.signal(signal.SIGUSR1, partial(_set_clock, itertools.cycle(CLOCK_JUMPS)))
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
                answer = _read(registry.store, job, log) if job.verb == "read" else do_job(registry, job)
            except PtpError as error:
                log.write(job=job.name, error=type(error).__name__, message=str(error))
            except Exception:  # noqa: BLE001 - no user should see any other error, so each is a finding
                log.write(job=job.name, error="crash", message=traceback.format_exc())
            else:
                log.write(job=job.name, done=answer.records, shown=answer.shown)


@contextmanager
def shorten_timeouts(mlflow_seconds: int = MLFLOW_SECONDS) -> Iterator[None]:
    """Use short leases and tombstones in this process until the block ends, and this timeout for MLflow's answers."""
    before = projection.LEASE_SECONDS, tombstone.SECONDS, mlflow_client.REQUEST_SECONDS, os.environ.get(MLFLOW_TIMEOUT)
    projection.LEASE_SECONDS = tombstone.SECONDS = LEASE_SECONDS
    mlflow_client.REQUEST_SECONDS = MLFLOW_SECONDS
    os.environ[MLFLOW_TIMEOUT] = str(mlflow_seconds)
    try:
        yield
    finally:
        projection.LEASE_SECONDS, tombstone.SECONDS, mlflow_client.REQUEST_SECONDS, timeout = before
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


def _set_clock(offsets: Iterator[float], _signal: int, _frame: object) -> None:
    """Let this process's wall clock be off by the next of the offsets."""
    ahead = timedelta(seconds=next(offsets))
    base.read_clock = lambda: datetime.now(UTC) + ahead


class _Following:
    """As much of a store as a reader needs; it keeps the last pointer that was read."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self.url, self.pointer = store, store.url, b""

    def read(self, key: str) -> Stored:
        stored = self._store.read(key)
        if isinstance(parse(key), AliasPointer):
            self.pointer = stored.body
        return stored


def _read(store: ObjectStore, job: Job, log: Log) -> Answer:
    """Read the alias as a server does, again and again, and log what it named, from when to when."""
    for _ in range(job.times):
        following, began = _Following(store), time.monotonic()
        try:
            resolved = resolve(cast(ObjectStore, following), f"{job.task}@{job.alias}")
        except Transient:
            continue
        except PtpError as error:
            seq = 0 if isinstance(error, NotFound) and not following.pointer else None
            wrong = None if seq == 0 else str(error)
        else:
            promotion = Pointer.model_validate_json(following.pointer).promotion
            seq, wrong = promotion.seq, None
            if (resolved.number, resolved.artifact.digest) != (promotion.version, promotion.digest):
                wrong = f"{resolved.name} is not what {promotion!r} names"
        log.write(job=job.name, read=seq, began=began, wrong=wrong)
        time.sleep(READ_EVERY)
    return Answer([], {})


def do_job(registry: Registry, job: Job) -> Answer:
    """Do the job; return what the registry acknowledged."""
    if job.verb == "reconcile":
        heads = registry.ledger.heads(job.task)
        actions = reconcile(registry, {job.task: a_task(job.task)}, job.task)
        undone = [action for action in actions if not action.done and "interrupted" not in action.what]
        return Answer([], {} if undone else {f"{head.task}@{head.alias}": head.seq for head in heads})
    records = _move(registry, job)
    shown = (
        {} if job.verb == "publish" else {f"{row['task']}@{row['alias']}": _shown_seq(registry, row) for row in records}
    )
    return Answer(records, shown)


def _shown_seq(registry: Registry, row: dict[str, Any]) -> int:
    """The promotion that the store is known to show, 0 if none."""
    try:
        applied = registry.ledger.applied("store", row["task"], row["alias"])
    except PtpError:
        return 0
    return applied.seq if applied else 0


def _move(registry: Registry, job: Job) -> list[dict[str, Any]]:
    task, cause = a_task(job.task), Cause(f"worker of {job.verb}", job.name, job.override)
    if job.verb == "publish":
        return [publish(registry, job.task, job.seed).to_json()]
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
    """Keep the gate's decision against the current champion, as a run does before it promotes."""
    ledger, task = registry.ledger, a_task(version.task)
    head, report = ledger.head(task.name, alias), ledger.report_of(task.name, version.digest)
    publication, champion = ledger.publication(task.name, version.digest), head.digest if head else None
    judged = champion in [verdict.champion for verdict in ledger.verdicts(task.name, version.digest)]
    if alias in GATED and report and publication and not judged and champion != version.digest:
        verdict = a_verdict(task, report, champion, report.prompt.figures()["accuracy"] >= task.gate.minimum)
        keep_verdict(registry, Provenance(publication.tuned, report, verdict))
