"""What a foreign Prefect, MLflow, S3 and PostgreSQL need to run the factory, made where it is missing.

It is a list of pieces. Each can look whether it is there and make itself; to repeat all of it changes nothing. They are
made by the functions that `ptp up` calls for the local stack.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from flows.server.api import call
from flows.server.automations import install_automations
from flows.server.buckets import (
    ROLES,
    Bucket,
    NotKept,
    Policy,
    connect,
    find_policy,
    has_bucket,
    make_bucket,
    make_policy,
    read_policy,
)
from flows.server.deploy import deploy, find_outdated, read_deployments
from flows.server.environment import POOL
from ptpipeline.errors import NotFound, PtpError, SettingsError
from ptpipeline.records.base import Record
from ptpipeline.settings import Settings
from ptpipeline.storage.objects import without_login
from ptpipeline.task.task import Task
from registry.ledger.database import Database
from registry.ledger.tables import SCHEMA
from registry.mlflow.client import without_password
from registry.mlflow.store import MlflowStore
from registry.registry import is_checked, open_for_writing

PoolType = Literal["process", "docker", "kubernetes"]
State = Literal["there", "would be made", "made", "would be changed", "changed", "by hand", "cannot"]


class Outcome(Record):
    """What became of a piece, and one sentence why, if there is more to say."""

    piece: str
    at: str
    state: State
    note: str = ""


class Sight(NamedTuple):
    """What a look at a piece found; `note` says what is missing, differs, or stays as it is."""

    found: Literal["there", "missing", "differs"]
    note: str = ""


THERE, MISSING = Sight("there"), Sight("missing")


class Piece(NamedTuple):
    """One thing that has to be there: what it is, where, how to look at it, and how to make or change it."""

    name: str
    at: str
    look: Callable[[], Sight]
    make: Callable[[], None]


class Wanted(NamedTuple):
    """What a person chooses: the type of the work pool, and how many GPUs the job of a training gets."""

    pool: PoolType = "process"
    gpus: int = 0


DEFAULT = Wanted()


def bootstrap(settings: Settings, tasks: Sequence[Task], wanted: Wanted = DEFAULT, dry: bool = False) -> list[Outcome]:
    """Make all that is missing, or with `dry` only look; return what became of each piece.

    What cannot be looked at or made is an outcome with its sentence, and does not keep the others from being made.
    """
    return [_bring(piece, dry) for piece in _pieces(settings, tasks, wanted)]


def _bring(piece: Piece, dry: bool) -> Outcome:
    def tell(state: State, note: str) -> Outcome:
        return Outcome(piece=piece.name, at=piece.at, state=state, note=note)

    try:
        sight = piece.look()
        if sight.found == "there":
            return tell("there", sight.note)
        if not dry:
            piece.make()
    except NotKept as error:
        return tell("by hand", str(error))
    except PtpError as error:
        return tell("cannot", str(error))
    if sight.found == "missing":
        return tell("would be made" if dry else "made", sight.note)
    return tell("would be changed" if dry else "changed", sight.note)


def _pieces(settings: Settings, tasks: Sequence[Task], wanted: Wanted) -> Iterator[Piece]:
    """Yield the pieces in an order in which each finds what it needs."""
    yield from _storage_pieces(settings)
    yield from _ledger_pieces(settings)
    yield from _mlflow_pieces(settings)
    yield from _prefect_pieces(settings, tasks, wanted)


def _unset(name: str, variable: str, expected: str) -> Piece:
    def look() -> Sight:
        raise SettingsError(f"{variable}: machines can share no place of this one alone; set it to {expected}")

    return Piece(name, variable, look, lambda: None)


# ---------------------------------------------------------------- object store


def _storage_pieces(settings: Settings) -> Iterator[Piece]:
    parts = urlsplit(settings.store)
    if parts.scheme != "s3":
        yield _unset("object store", "PTP_STORE", "s3://BUCKET[/PREFIX], and PTP_S3_ENDPOINT to its server if not AWS")
        return
    endpoint = without_login("PTP_S3_ENDPOINT", settings.s3_endpoint) if settings.s3_endpoint else None
    bucket = Bucket(parts.netloc, endpoint, parts.path.strip("/"))
    yield _bucket_piece(bucket)
    if settings.mlflow:
        yield _bucket_piece(Bucket(f"{bucket.name}-mlflow", endpoint))
    for role in ROLES:
        policy = read_policy(role, bucket)
        yield Piece(
            f"policy {policy.name}", bucket.where, _look_at_policy(bucket, policy), _policy_maker(bucket, policy)
        )


def _bucket_piece(bucket: Bucket) -> Piece:
    def look() -> Sight:
        return THERE if has_bucket(connect(bucket), bucket) else MISSING

    return Piece(f"bucket {bucket.name}", bucket.where, look, lambda: make_bucket(connect(bucket), bucket))


def _look_at_policy(bucket: Bucket, policy: Policy) -> Callable[[], Sight]:
    def look() -> Sight:
        same = find_policy(bucket, policy)
        return MISSING if same is None else THERE if same else Sight("differs", "its document is another")

    return look


def _policy_maker(bucket: Bucket, policy: Policy) -> Callable[[], None]:
    return lambda: make_policy(bucket, policy)


# ---------------------------------------------------------------- ledger


def _ledger_pieces(settings: Settings) -> Iterator[Piece]:
    if settings.ledger.startswith("sqlite:"):
        yield _unset("ledger", "PTP_LEDGER", "postgresql://user@host/ledger, a database of its own")
        return
    database = Database(settings.ledger, migrate=False)

    def look_at_schema() -> Sight:
        revision = database.stored_schema()
        if revision is None:
            return MISSING
        return THERE if revision == SCHEMA else Sight("differs", f"it is at {revision}; this version needs {SCHEMA}")

    def look_at_check() -> Sight:
        if database.stored_schema() != SCHEMA:
            return Sight("missing", "not tried yet")
        return THERE if is_checked(settings) else Sight("missing", "not tried today")

    yield Piece(f"ledger's schema {SCHEMA}", database.name, look_at_schema, lambda: Database(settings.ledger).close())
    if settings.store.startswith("s3://"):
        yield Piece("store keeps conditions", settings.store, look_at_check, lambda: _check_store(settings))


def _check_store(settings: Settings) -> None:
    """Try the store's conditional puts, as each run does once a day."""
    open_for_writing(settings).ledger.close()


# ---------------------------------------------------------------- MLflow


def _mlflow_pieces(settings: Settings) -> Iterator[Piece]:
    if settings.mlflow is None:
        yield _unset("MLflow", "PTP_MLFLOW", "the address of your MLflow server")
        return
    store = MlflowStore(settings.mlflow)

    def look() -> Sight:
        store.check()
        return THERE

    yield Piece("MLflow answers", without_password(store.uri), look, lambda: None)


# ---------------------------------------------------------------- Prefect


def _prefect_pieces(settings: Settings, tasks: Sequence[Task], wanted: Wanted) -> Iterator[Piece]:
    api, (pool, gpus) = settings.prefect, wanted
    if api is None:
        yield _unset(
            "Prefect", "PTP_PREFECT", "the API address of your Prefect server, such as http://prefect:4200/api"
        )
        return

    def look_at_deployments() -> Sight:
        outdated = find_outdated(settings, tasks, gpus)
        note = "; ".join(f"{name} {what}" for name, what in outdated.items())
        if all(what == "is missing" for what in outdated.values()):
            return Sight("missing", note) if outdated else THERE
        return Sight("differs", note)

    yield Piece(f"work pool {POOL} ({pool})", api, lambda: look_at_pool(api, pool), lambda: make_pool(api, pool))
    yield Piece("deployments", api, look_at_deployments, lambda: deploy(settings, tasks, True, gpus))
    yield Piece("automations", api, lambda: look_at_automations(api), lambda: _install(api))


def look_at_automations(api: str) -> Sight:
    """Look whether Prefect has the automations that notice a dead worker."""
    try:
        lacking = install_automations(api, read_deployments(api), dry=True)
    except NotFound:  # they name deployments
        return MISSING
    return Sight("missing", "; ".join(lacking)) if lacking else THERE


def _install(api: str) -> None:
    install_automations(api, read_deployments(api))


def look_at_pool(api: str, pool: PoolType) -> Sight:
    """Look whether Prefect has the work pool.

    Raises SettingsError if it is of another type: nobody but a person may remove the one that is there.
    """
    try:
        known = call("GET", f"{api}/work_pools/{POOL}")
    except NotFound:
        call("GET", f"{api}/health")  # an address that is not Prefect's answers 404 too
        return MISSING
    if known["type"] != pool:
        raise SettingsError(
            f"work pool {POOL} at {api} is of type {known['type']}, not {pool}: ask for --pool {known['type']}, or "
            f"delete the pool first (`prefect work-pool delete {POOL}`)"
        )
    changed = known["base_job_template"] != read_template(pool)
    return Sight("there", "its job template is not the shipped one, and stays" if changed else "")


def make_pool(api: str, pool: PoolType) -> None:
    """Create the work pool with the job template of its type."""
    body = {"name": POOL, "type": pool, "base_job_template": read_template(pool)}
    call("POST", f"{api}/work_pools/", body)


def read_template(pool: PoolType) -> Any:
    """Return the job template of a work pool: what a worker of that type makes for each flow run."""
    path = Path(__file__).with_name("pools") / f"{pool}.json"
    return json.loads(path.read_text(encoding="utf-8"))
