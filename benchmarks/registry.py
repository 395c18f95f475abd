"""What the registry costs on the local stack, and whether racing promoters lose anything.

Real SeaweedFS, MLflow and ledger (SQLite, or PostgreSQL with `--ledger postgres`) on loopback, all as durable as they
are shipped. Two such stacks run side by side, seeded at database level (benchmarks/seeding.py): one with 2 tasks x 10
versions, one with `--tasks` x `--versions`. Each round does the same on both, in alternating order, so that the two
sides of a ratio are measured at the same time.

    resolve    serving's `resolve("task@production")`, from the object store alone
    publish    stage + register: bytes, records, plot, dossier, MLflow's logged model and version; the run of its
               training exists already
    promote    `promote` of a version with a passed verdict: gate, ledger, history, pointer and MLflow's alias
    *_ratio    median at tasks x versions / median at 20 versions
    requests, statements, writes    what one of them sends on average to MLflow, to S3 and to the ledger; a write is a
               transaction that is synced to disk

Races: benchmarks/race.py.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
from sqlalchemy import Connection, Engine, event

from benchmarks.fixtures.mlflow_server import running_mlflow
from benchmarks.fixtures.postgres import running_postgres
from benchmarks.fixtures.prompts import a_request, a_verdict, an_artifact
from benchmarks.fixtures.s3_server import running_s3
from benchmarks.race import race
from benchmarks.seeding import Addresses, seed, task_of
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.serving.resolver import resolve
from ptpipeline.task.task import Task
from registry.mlflow.tracking import Tracking
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from registry.versions.publish import register, remember, stage

SMALL = (2, 10)  # tasks, versions of each
CAUSE = Cause("benchmark", "measured")


# ------------------------------------------------------------ the stacks


class Side(NamedTuple):
    """One stack with its open registry, and how many tasks and versions of each it was seeded with."""

    addresses: Addresses
    registry: Registry
    tasks: int
    versions: int

    def choose_task(self, dice: random.Random) -> Task:
        """Choose one of the seeded tasks."""
        return task_of(dice.randrange(self.tasks))


@contextmanager
def run_side(folder: Path, kind: str, size: tuple[int, int]) -> Iterator[Side]:
    """Run a seeded stack of (tasks, versions) until the block ends."""
    with ExitStack() as stack:
        s3 = stack.enter_context(running_s3(folder / "s3"))
        os.environ.update({name: value for name, value in s3.environment.items() if name != "AWS_ENDPOINT_URL_S3"})
        mlflow = stack.enter_context(running_mlflow(folder / "mlflow"))
        ledger = f"sqlite:///{folder}/ledger.db"
        if kind == "postgres":
            ledger = stack.enter_context(running_postgres(durable=True)).create_database("ledger")
        boto3.client("s3", endpoint_url=s3.endpoint).create_bucket(Bucket="benchmark")
        mlflow_db = folder / "mlflow" / "mlflow.db"
        addresses = Addresses(ledger, "benchmark", s3.endpoint, _filer_port(s3.process.args), mlflow, mlflow_db)
        started = time.perf_counter()
        seed(addresses, *size)
        seconds = time.perf_counter() - started
        print(f"{size[0]} tasks x {size[1]} versions: stack is up, seeded in {seconds:.0f} s", flush=True)
        registry = addresses.open()
        stack.callback(registry.ledger.close)
        yield Side(addresses, registry, *size)


def _filer_port(command: object) -> int:
    """The port of the server's filer, from its command."""
    (port,) = re.findall(r"-filer\.port=(\d+)", str(command))
    return int(port)


@contextmanager
def _restore_environment() -> Iterator[None]:
    """Restore the environment when the block ends; the servers' keys are put there meanwhile."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# ------------------------------------------------------------ what is measured


def publish_one(side: Side, dice: random.Random) -> float:
    """Publish a new prompt of some task, whose training MLflow knows; return the seconds."""
    task, number = side.choose_task(dice), dice.randrange(10**6, 10**9)
    request, artifact = a_request(task, number), an_artifact(task, number)
    tracking = Tracking(side.addresses.mlflow)
    run = tracking.start(task.name, {"seed": number}, {})
    for point in request.tuned.curve:
        tracking.log_point(run, point)
    tracking.finish(run, "FINISHED")
    request = dataclasses.replace(request, tuned=request.tuned.model_copy(update={"tracking_run": run}))

    def publish() -> None:
        stage(side.registry.ledger, side.registry.store, artifact)
        register(side.registry, request)

    return METER.time("publish", publish)


def promote_one(side: Side, dice: random.Random) -> float:
    """Promote another version of some task, which passed the gate against the champion; return the seconds."""
    ledger, task = side.registry.ledger, side.choose_task(dice)
    head = ledger.head(task.name, PRODUCTION)
    number = dice.choice([number for number in range(1, side.versions + 1) if head is None or number != head.version])
    report = ledger.report_of(task.name, an_artifact(task, number - 1).digest)
    if report is None:
        raise SystemExit(f"{task.name} version {number} has no report: it was not seeded")
    verdict = a_verdict(task, report, head.digest if head else None)
    request = dataclasses.replace(a_request(task, number - 1), report=report, verdict=verdict)
    remember(side.registry, request)
    ledger.save_verdict(verdict)
    return METER.time("promote", lambda: promote(side.registry, task, number, CAUSE))


def resolve_one(side: Side, dice: random.Random) -> float:
    """Resolve the production version of some task; return the seconds."""
    task = side.choose_task(dice).name
    return METER.time("resolve", lambda: resolve(side.registry.store, f"{task}@{PRODUCTION}"))


def measure_rounds(
    sides: Sequence[Side], once: Callable[[Side, random.Random], float], rounds: int
) -> list[list[float]]:
    """Return the milliseconds of each round, per side, after two rounds that warm up."""
    dice = random.Random(0)
    milliseconds: list[list[float]] = [[] for _ in sides]
    for index in range(rounds + 2):
        for position in range(len(sides)):
            which = (index + position) % len(sides)
            duration = 1000 * once(sides[which], dice)
            if index >= 2:
                milliseconds[which].append(duration)
    return milliseconds


class Meter:
    """Counts, per kind of operation, its repetitions and what it sends; an audit hook sees every request."""

    def __init__(self) -> None:
        self.sent: dict[str, Counter[str]] = {}
        self._now: Counter[str] = Counter()
        self._s3_ports: set[int] = set()
        self._hooked = False

    def start(self, sides: Sequence[Side]) -> None:
        """Start to count, from zero."""
        self.sent.clear()
        self._s3_ports = {urlsplit(side.addresses.s3).port or 0 for side in sides}
        if not self._hooked:  # an audit hook stays for the life of the process
            sys.addaudithook(self._count_request)
            self._hooked = True
        event.listen(Engine, "after_cursor_execute", self._count_statement)
        event.listen(Engine, "commit", self._count_write)

    def stop(self) -> None:
        """Stop to listen to the database; the audit hook goes on, but nobody reads its counts."""
        event.remove(Engine, "after_cursor_execute", self._count_statement)
        event.remove(Engine, "commit", self._count_write)

    def time(self, kind: str, operation: Callable[[], object]) -> float:
        """Run the operation and return its seconds; add what it sends to its kind."""
        self._now = Counter()
        started = time.perf_counter()
        operation()
        seconds = time.perf_counter() - started
        self.sent.setdefault(kind, Counter()).update(self._now, repetitions=1)
        return seconds

    def average(self, kind: str) -> dict[str, float]:
        """Return what one operation of that kind sends on average."""
        sent = self.sent[kind]
        return {name: round(sent[name] / sent["repetitions"], 1) for name in ("mlflow", "s3", "statements", "writes")}

    def _count_request(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "http.client.send" and isinstance(arguments[1], bytes) and b" HTTP/1.1\r\n" in arguments[1][:2000]:
            self._now["s3" if arguments[0].port in self._s3_ports else "mlflow"] += 1

    def _count_statement(self, *_: object) -> None:
        self._now["statements"] += 1

    def _count_write(self, connection: Connection) -> None:
        self._now["writes"] += "begin" in connection.get_execution_options()


METER = Meter()


# ------------------------------------------------------------ the report


def measure_reads(side: Side) -> dict[str, float]:
    """Return the milliseconds of what people read, medians of five: lists of versions, one version, heads, history."""
    ledger, task = side.registry.ledger, task_of(side.tasks - 1).name
    last_page = max(0, side.tasks * side.versions - 100)

    def show() -> None:
        version = ledger.version(task, side.versions)
        read_artifact(side.registry.store, task, version.digest)
        ledger.publication(task, version.digest)
        ledger.report_of(task, version.digest)
        ledger.latest_verdict(task, version.digest)

    reads: Mapping[str, Callable[[], object]] = {
        "versions_page_ms": lambda: ledger.versions(limit=100),
        "versions_last_page_ms": lambda: ledger.versions(limit=100, offset=last_page),
        "show_ms": show,
        "heads_ms": ledger.heads,
        "history_ms": lambda: ledger.history(task),
    }
    return {
        name: round(1000 * statistics.median(METER.time(name, read) for _ in range(5)), 2)
        for name, read in reads.items()
    }


def measure_doctor(side: Side) -> dict[str, float]:
    """Time one whole examination; it finds no differences if the seeding is right."""
    started = time.perf_counter()
    differences = examine(side.registry)
    for difference in differences[:5]:
        print(f"doctor: {difference.task}: {difference.what}: expected {difference.expected}, found {difference.found}")
    return {"doctor_s": round(time.perf_counter() - started, 2), "doctor_differences": len(differences)}


def measure(sides: Sequence[Side], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all figures; names without a suffix are of the small stack."""
    figures: dict[str, Any] = {}
    METER.start(sides)
    try:
        for name, once, rounds in (
            ("resolve", resolve_one, 10 * arguments.rounds),
            ("promote", promote_one, arguments.rounds),
            ("publish", publish_one, arguments.rounds),
        ):
            figures |= _report_operation(name, measure_rounds(sides, once, rounds))
        figures |= race(sides[0].addresses, sides[0].registry, arguments.races)
        figures |= measure_reads(sides[-1])
        figures |= measure_doctor(sides[0 if arguments.no_doctor else -1])
        return figures
    finally:
        METER.stop()


def _report_operation(name: str, milliseconds: list[list[float]]) -> dict[str, Any]:
    """Print and return the figures of one operation, on the small stack and, if there is one, on the large one."""
    small, *large = milliseconds
    sends = METER.average(name)
    figures: dict[str, Any] = {f"{name}_p50_ms": _p(small, 50), f"{name}_p95_ms": _p(small, 95), f"{name}_sends": sends}
    at_scale = ""
    for values in large:
        p50, p95 = _p(values, 50), _p(values, 95)
        ratio = round(statistics.median(values) / statistics.median(small), 2)
        figures |= {f"{name}_p50_ms_at_scale": p50, f"{name}_p95_ms_at_scale": p95, f"{name}_ratio": ratio}
        at_scale = f"at scale {p50} and {p95} ms; "
    print(f"{name}: p50 {_p(small, 50)} ms, p95 {_p(small, 95)} ms; {at_scale}sends {sends}", flush=True)
    return figures


def _p(milliseconds: Sequence[float], percent: int) -> float:
    return round(statistics.quantiles(milliseconds, n=100, method="inclusive")[percent - 1], 2)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.registry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ledger", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--tasks", type=int, default=500, help="tasks of the large stack; 0 leaves it out")
    parser.add_argument("--versions", type=int, default=40, help="versions of each of them")
    parser.add_argument(
        "--rounds", type=int, default=30, help="publishes and promotions per stack; resolves are ten times as many"
    )
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--no-doctor", action="store_true", help="examine the small stack only")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print lines for people, then the figures as one JSON object on the last line."""
    arguments = make_parser().parse_args(argv)
    sizes = [SMALL, *([(arguments.tasks, arguments.versions)] if arguments.tasks else [])]
    with tempfile.TemporaryDirectory(prefix="ptp-registry-") as folder, ExitStack() as stack:
        stack.enter_context(_restore_environment())
        sides = [
            stack.enter_context(run_side(Path(folder) / str(index), arguments.ledger, size))
            for index, size in enumerate(sizes)
        ]
        figures = measure(sides, arguments)
    shape = {name: getattr(arguments, name) for name in ("ledger", "tasks", "versions", "rounds")}
    print(json.dumps({**figures, **shape, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
