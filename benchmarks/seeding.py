"""Writes a registry of many versions straight into its databases and its store, as if each had been published and
promoted.

Seeded per version: the ledger's rows (version, training, evaluation, verdict, publication), the store's tensors,
manifest, number and dossier, and in MLflow's SQLite file a copy of every row of one prompt that was published for real:
run, logged model, model version, with their tags, params and metrics. Per task: snapshot, experiment, registered model,
and every fourth version once in production, so that history, pointer, alias and projections stand as promotions leave
them. Not seeded: plots, MLflow's files and data set inputs, which nothing that is measured at scale reads.
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

from ptpipeline.records import PRODUCTION, Pointer, Promotion, Record, VersionName, now
from ptpipeline.storage import S3Store
from ptpipeline.storage.keys import dossier_key, history_key, manifest_key, pointer_key, tensors_key, version_key
from ptpipeline.task.task import Task
from registry.card.card import Provenance
from registry.ledger import tables
from registry.ledger.ledger import Ledger
from registry.ledger.results import Publication
from registry.mlflow.store import APPLIED_TAG, MlflowStore
from registry.registry import Registry
from registry.versions.provenance import Dossier
from tests.registry.prompts import a_request, a_snapshot, a_task, an_artifact, published

PATTERN = a_task("seed-pattern")
PROMOTED_EVERY = 4

Rows = list[tuple[Table, dict[str, Any]]]


class Addresses(NamedTuple):
    """Where a registry lives, for every process that opens it; `mlflow_db` is MLflow's SQLite file, `filer` SeaweedFS's
    own port.
    """

    ledger: str
    bucket: str
    s3: str
    filer: int
    mlflow: str
    mlflow_db: Path

    def open(self) -> Registry:
        """The registry over real servers, without the probe of the store."""
        return Registry(Ledger(self.ledger), S3Store(self.bucket, endpoint=self.s3), MlflowStore(self.mlflow))


def task_of(index: int) -> Task:
    """The seeded task of that index."""
    return a_task(f"task-{index:04d}")


def seed(addresses: Addresses, tasks: int, versions: int) -> None:
    """`versions` versions of each of `tasks` tasks, numbered from 1; seed s is version s + 1."""
    registry = addresses.open()
    published(registry, PATTERN, 0)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        stored = pool.submit(_store_tasks, addresses, tasks, versions)
        digests = [_remember_task(registry.ledger, versions, index) for index in range(tasks)]
        _copy_in_mlflow(addresses.mlflow_db, digests, versions)
        stored.result()
    registry.ledger.close()


def _promotions(task: Task, versions: int) -> list[Promotion]:
    """Every fourth version went to production, one after another."""
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


def _store_tasks(addresses: Addresses, tasks: int, versions: int) -> None:
    """Every object of every task, put through the filer, on which SeaweedFS's S3 stands."""
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


def _remember_task(ledger: Ledger, versions: int, index: int) -> list[str]:
    """The ledger's rows of one task in one transaction; the digests of its versions."""
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
    """A table whose rows of the pattern, those where the column `key` has its value, are copied."""

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


def _copy_in_mlflow(path: Path, digests: list[list[str]], versions: int) -> None:
    """All copies in one transaction, beside the server that has the file open."""
    connection = sqlite3.connect(path, timeout=60)
    with connection:
        run, model = connection.execute(
            "SELECT run_id, source FROM model_versions WHERE name = ?", (PATTERN.name,)
        ).fetchone()
        pattern = {
            "run_uuid": run,
            "model_id": model.removeprefix("models:/"),
            "name": PATTERN.name,
            "digest": an_artifact(PATTERN, 0).digest,
        }
        (pattern["experiment_id"],) = connection.execute(
            "SELECT experiment_id FROM runs WHERE run_uuid = ?", (run,)
        ).fetchone()
        per_task, per_version = (
            [_statement(connection, copy, pattern) for copy in copies] for copies in (_PER_TASK, _PER_VERSION)
        )
        for index, of_task in enumerate(digests):
            new = {f"old_{key}": value for key, value in pattern.items()} | {
                "new_name": task_of(index).name,
                "new_experiment_id": 1_000_000 + index,
            }
            for statement in per_task:
                connection.execute(
                    statement,
                    new
                    | {
                        "new_run_uuid": run,
                        "new_model_id": pattern["model_id"],
                        "new_digest": pattern["digest"],
                        "number": 0,
                    },
                )
            for values in _identities(of_task):
                for statement in per_version:
                    connection.execute(statement, new | values)
            champion = {
                "name": task_of(index).name,
                "alias": PRODUCTION,
                "version": (versions - 1) // PROMOTED_EVERY * PROMOTED_EVERY + 1,
            }
            connection.execute(
                "INSERT INTO registered_model_aliases (name, alias, version) VALUES (:name, :alias, :version)", champion
            )
            applied = {
                "name": champion["name"],
                "key": f"{APPLIED_TAG}{PRODUCTION}",
                "value": str((versions - 1) // PROMOTED_EVERY + 1),
            }
            connection.execute(
                "INSERT INTO registered_model_tags (name, key, value) VALUES (:name, :key, :value)", applied
            )
        connection.execute("UPDATE model_version_tags SET value = CAST(version AS TEXT) WHERE key = 'ptp.version'")
    connection.close()


def _identities(digests: list[str]) -> Iterator[dict[str, Any]]:
    for number, digest in enumerate(digests, 1):
        yield {
            "new_run_uuid": uuid.uuid4().hex,
            "new_model_id": f"m-{uuid.uuid4().hex}",
            "new_digest": digest,
            "number": number,
        }


def _statement(connection: sqlite3.Connection, copy: _Copy, pattern: dict[str, Any]) -> str:
    """An INSERT of the pattern's rows with its identities replaced, in whichever text column they stand."""
    columns = [(row[1], row[2]) for row in connection.execute(f"PRAGMA table_info({copy.table})")]
    connection.execute(
        f"CREATE TEMP TABLE pattern_{copy.table} AS SELECT * FROM {copy.table} WHERE {copy.key} = ?",
        (pattern[copy.key],),
    )
    values, names = (
        ", ".join(_value(name, kind) for name, kind in columns),
        ", ".join(f'"{name}"' for name, _ in columns),
    )
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
