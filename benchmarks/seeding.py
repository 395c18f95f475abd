"""Writes a registry of many versions straight into its databases and its store, as if each had been published and
promoted.

Per version it writes the ledger's rows (version, training, evaluation, verdict, publication), the store's tensors,
manifest, number and dossier, and, in MLflow's SQLite file, a copy of every row of one prompt that was really published:
run, logged model, model version, with their tags, params and metrics. Per task it writes snapshot, experiment and
registered model, and promotes every fourth version to production: history, pointer, alias and projections are those of
real promotions. It writes no plots, no files and no data set inputs of MLflow: nothing that is measured reads them.
"""

import http.client
import json
import sqlite3
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Table

from benchmarks.fixtures.children import end_with_parent
from benchmarks.fixtures.prompts import a_request, a_snapshot, a_task, an_artifact, published
from ptpipeline.records.base import Record, now
from ptpipeline.records.versions import PRODUCTION, Pointer, Promotion, VersionName
from ptpipeline.storage import S3Store
from ptpipeline.storage.keys import dossier_key, history_key, manifest_key, pointer_key, tensors_key, version_key
from ptpipeline.task.task import Task
from registry.card.card import Provenance
from registry.ledger import tables
from registry.ledger.ledger import Ledger
from registry.ledger.results import Publication
from registry.mlflow.store import APPLIED_TAG, MlflowStore
from registry.registry import Registry
from registry.versions.dossier import Dossier

PATTERN = a_task("seed-pattern")
PROMOTED_EVERY = 4

Rows = list[tuple[Table, dict[str, Any]]]


class Addresses(NamedTuple):
    """The addresses of a registry. `mlflow_db` is MLflow's SQLite file, `filer` the port of SeaweedFS's filer."""

    ledger: str
    bucket: str
    s3: str
    filer: int
    mlflow: str
    mlflow_db: Path

    def open(self) -> Registry:
        """Open the registry, without the check of what its store guarantees."""
        return Registry(Ledger(self.ledger), S3Store(self.bucket, endpoint=self.s3), MlflowStore(self.mlflow))


def task_of(index: int) -> Task:
    """Return the seeded task of that index."""
    return a_task(f"task-{index:04d}")


def seed(addresses: Addresses, tasks: int, versions: int) -> None:
    """Write `versions` versions of each of `tasks` tasks, numbered from 1; the prompt of seed s is version s + 1."""
    registry = addresses.open()
    published(registry, PATTERN, 0)
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        stored = pool.submit(_write_store, addresses, tasks, versions)
        digests = [_write_ledger(registry.ledger, versions, index) for index in range(tasks)]
        _write_mlflow(addresses.mlflow_db, digests, versions)
        stored.result()
    registry.ledger.close()


def _promotions(task: Task, versions: int) -> list[Promotion]:
    """Promotions of every fourth version to production, in order."""
    numbers = list(range(1, versions + 1, PROMOTED_EVERY))
    return [
        Promotion(
            task=task.name,
            alias=PRODUCTION,
            seq=seq,
            version=number,
            digest=an_artifact(task, number - 1).digest,
            previous=numbers[seq - 2] if seq > 1 else None,
            actor="seed",
            reason="seeded",
            verdict=None,
            at=f"2026-01-01T00:00:00.{seq:06d}Z",
        )
        for seq, number in enumerate(numbers, 1)
    ]


# ------------------------------------------------------------ the store


def _write_store(addresses: Addresses, tasks: int, versions: int) -> None:
    """Put every object of every task through the filer, which SeaweedFS's S3 server uses, too."""
    connection = http.client.HTTPConnection("127.0.0.1", addresses.filer, timeout=60)
    for key, body in (item for index in range(tasks) for item in _objects(task_of(index), versions)):
        connection.request(
            "PUT", f"/buckets/{addresses.bucket}/{key}", body, {"Content-Type": "application/octet-stream"}
        )
        answer = connection.getresponse()
        answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"the filer answers {answer.status} to a PUT of {key}")


def _objects(task: Task, versions: int) -> Iterator[tuple[str, bytes]]:
    for seed in range(versions):
        artifact = an_artifact(task, seed)
        digest = artifact.digest
        yield tensors_key(task.name, digest), artifact.tensors
        yield (
            manifest_key(task.name, digest),
            json.dumps(artifact.manifest.to_json(), indent=1, sort_keys=True).encode(),
        )
        yield version_key(task.name, seed + 1), _body(VersionName(task=task.name, number=seed + 1, digest=digest))
        request = a_request(task, seed)
        dossier = (
            Dossier(publication=_publication(request), report=request.report, verdict=request.verdict)
            .model_dump_json()
            .encode()
        )
        yield dossier_key(task.name, digest, dossier), dossier
    promotions = _promotions(task, versions)
    for promotion in promotions:
        yield history_key(task.name, PRODUCTION, promotion.seq), _body(promotion)
    yield pointer_key(task.name, PRODUCTION), _body(Pointer(promotion=promotions[-1], nonce=uuid.uuid4().hex))


def _body(record: Record) -> bytes:
    return record.model_dump_json(indent=1).encode()


# ------------------------------------------------------------ the ledger


def _write_ledger(ledger: Ledger, versions: int, index: int) -> list[str]:
    """Write the ledger's rows of one task in one transaction; return the digests of its versions."""
    task = task_of(index)
    ledger.save_snapshot(a_snapshot(task))
    rows = [row for seed in range(versions) for row in _version_rows(task, seed)]
    promotions = _promotions(task, versions)
    rows += [
        (tables.promotion, promotion.model_dump() | {"override": False, "release": None}) for promotion in promotions
    ]
    applied = {
        "task": task.name,
        "alias": PRODUCTION,
        "applied_seq": promotions[-1].seq,
        "applied_version": promotions[-1].version,
        "at": now(),
    }
    rows += [(tables.projection, {"target": target, **applied}) for target in ("store", "mlflow")]
    with ledger.database.writing() as connection:
        for table in dict.fromkeys(table for table, _ in rows):
            connection.execute(table.insert(), [values for owner, values in rows if owner is table])
    return [str(values["digest"]) for owner, values in rows if owner is tables.version]


def _version_rows(task: Task, seed: int) -> Rows:
    request, at = a_request(task, seed), now()
    tuned, report, verdict = request.tuned, request.report, request.verdict
    if report is None or verdict is None:
        raise ValueError("a seeded prompt has a report and a verdict")
    key = {"task": task.name, "digest": tuned.digest}
    return [
        (tables.version, {**key, "number": seed + 1, "at": at}),
        (tables.training, {"task": task.name, "training_key": tuned.training_key, "record": tuned.to_json(), "at": at}),
        (tables.evaluation, {**key, "evaluation_key": report.evaluation_key, "record": report.to_json(), "at": at}),
        (
            tables.verdict,
            {
                **key,
                "verdict": verdict.verdict_digest(),
                "gate_key": verdict.gate_key,
                "passed": verdict.passed,
                "record": verdict.to_json(),
                "at": at,
            },
        ),
        (tables.publication, {**key, "record": _publication(request).to_json(), "at": at}),
    ]


def _publication(request: Provenance) -> Publication:
    return Publication(tuned=request.tuned, commit=request.commit, plots={})


# ------------------------------------------------------------ MLflow's database


class _Copy(NamedTuple):
    """A table of which the pattern's rows are copied: those whose column `key` has the pattern's value."""

    table: str
    key: str


_PER_TASK = (
    _Copy("experiments", "experiment_id"),
    _Copy("registered_models", "name"),
    _Copy("registered_model_tags", "name"),
)
_PER_VERSION = (
    *(_Copy(table, "run_uuid") for table in ("runs", "tags", "params", "metrics", "latest_metrics")),
    *(
        _Copy(table, "model_id")
        for table in ("logged_models", "logged_model_tags", "logged_model_params", "logged_model_metrics")
    ),
    _Copy("model_versions", "name"),
    _Copy("model_version_tags", "name"),
)


def _write_mlflow(path: Path, digests: list[list[str]], versions: int) -> None:
    """Write all copies in one transaction, while the server has the file open."""
    connection = sqlite3.connect(path, timeout=60)
    with connection:
        pattern = _read_pattern(connection)
        per_task, per_version = (
            [_make_statement(connection, copy, pattern) for copy in copies] for copies in (_PER_TASK, _PER_VERSION)
        )
        for index, of_task in enumerate(digests):
            name = task_of(index).name
            values = {f"old_{key}": value for key, value in pattern.items()}
            values |= {f"new_{key}": value for key, value in pattern.items()}
            values |= {"new_name": name, "new_experiment_id": 1_000_000 + index, "number": 0}
            for statement in per_task:
                connection.execute(statement, values)
            for identity in _new_identities(of_task):
                for statement in per_version:
                    connection.execute(statement, values | identity)
            _promote_in_mlflow(connection, name, versions)
        connection.execute("UPDATE model_version_tags SET value = CAST(version AS TEXT) WHERE key = 'ptp.version'")
    connection.close()


def _read_pattern(connection: sqlite3.Connection) -> dict[str, Any]:
    """Return the identities of the really published prompt."""
    query = "SELECT run_id, source FROM model_versions WHERE name = ?"
    run, model = connection.execute(query, (PATTERN.name,)).fetchone()
    query = "SELECT experiment_id FROM runs WHERE run_uuid = ?"
    (experiment,) = connection.execute(query, (run,)).fetchone()
    return {
        "run_uuid": run,
        "model_id": model.removeprefix("models:/"),
        "name": PATTERN.name,
        "digest": an_artifact(PATTERN, 0).digest,
        "experiment_id": experiment,
    }


def _promote_in_mlflow(connection: sqlite3.Connection, name: str, versions: int) -> None:
    """Write the alias of the last promotion, and the tag with its number."""
    promotions = (versions - 1) // PROMOTED_EVERY + 1
    champion = {"name": name, "alias": PRODUCTION, "version": (promotions - 1) * PROMOTED_EVERY + 1}
    connection.execute(
        "INSERT INTO registered_model_aliases (name, alias, version) VALUES (:name, :alias, :version)", champion
    )
    applied = {"name": name, "key": f"{APPLIED_TAG}{PRODUCTION}", "value": str(promotions)}
    connection.execute("INSERT INTO registered_model_tags (name, key, value) VALUES (:name, :key, :value)", applied)


def _new_identities(digests: list[str]) -> Iterator[dict[str, Any]]:
    for number, digest in enumerate(digests, 1):
        yield {
            "new_run_uuid": uuid.uuid4().hex,
            "new_model_id": f"m-{uuid.uuid4().hex}",
            "new_digest": digest,
            "number": number,
        }


def _make_statement(connection: sqlite3.Connection, copy: _Copy, pattern: dict[str, Any]) -> str:
    """Return an INSERT of the pattern's rows that replaces its identities in every text column."""
    columns = [(row[1], row[2]) for row in connection.execute(f"PRAGMA table_info({copy.table})")]
    connection.execute(
        f"CREATE TEMP TABLE pattern_{copy.table} AS SELECT * FROM {copy.table} WHERE {copy.key} = ?",
        (pattern[copy.key],),
    )
    names = ", ".join(f'"{name}"' for name, _ in columns)
    values = ", ".join(_value(name, kind) for name, kind in columns)
    return f"INSERT INTO {copy.table} ({names}) SELECT {values} FROM pattern_{copy.table}"


def _value(name: str, kind: str) -> str:
    if name == "experiment_id":
        return ":new_experiment_id"
    if name == "version":
        return ":number"
    if not kind.upper().startswith(("VARCHAR", "TEXT", "STRING")):
        return f'"{name}"'
    value = f'"{name}"'
    for token in ("name", "digest", "run_uuid", "model_id"):
        value = f"replace({value}, :old_{token}, :new_{token})"
    return f"replace({value}, substr(:old_digest, 1, 12), substr(:new_digest, 1, 12))"
