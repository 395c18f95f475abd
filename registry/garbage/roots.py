"""What has to be kept: roots by the ledger, by the store and by MLflow, and what each of them consists of or descends
from.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from pydantic import Field, ValidationError
from sqlalchemy import Connection, Row, Select, Table, select, true

from ptpipeline.prompts.artifact import MANIFEST_FILE
from ptpipeline.records import PromptManifest, Record, digest_of, prompt_prefix
from ptpipeline.serving.servers import read_server_reports
from ptpipeline.storage import ObjectStore
from registry.ledger import tables
from registry.listing import read_all
from registry.registry import Registry
from registry.versions.projection import pointer_in

Name = tuple[str, str]  # a task, and the digest of a prompt or snapshot of it

MAX_COMBINATIONS = 100_000  # of the sources' snapshots, tried for the one that a shared prompt was trained on


ABANDONED = timedelta(days=1)


class Retention(Record):
    """What is kept beside what is in use: each task's newest `candidates` versions, and what is younger than
    `grace`.
    """

    candidates: int = Field(default=10, ge=1)
    grace: timedelta = Field(default=timedelta(hours=24), ge=timedelta(0))

    def fresh(self, at: datetime) -> bool:
        """Whether that time lies within the grace period."""
        return datetime.now(UTC) - at < self.grace


def prompts_in_use(connection: Connection, policy: Retention, task: str | None = None) -> set[Name]:
    """Prompts that the ledger needs: ever promoted or released, being published, published lately, or among the newest.

    A run presents its candidate to the ledger each time, so what today's recipe and rows lead to is published lately.
    """
    intent, promotion, version, publication = tables.intent, tables.promotion, tables.version, tables.publication
    named: set[Name] = set()
    for table, held in (
        (intent, intent.c.at >= abandoned(policy)),
        (promotion, true()),
    ):  # before the versions: a publish that ends meanwhile is in the one or in the other
        named |= {
            (row.task, row.digest)
            for row in connection.execute(_of(select(table.c.task, table.c.digest).where(held).distinct(), table, task))
        }
    rows = connection.execute(_of(select(version.c.task, version.c.number, version.c.digest), version, task)).all()
    digests = {(row.task, row.number): row.digest for row in rows}
    for released in connection.scalars(select(tables.release.c.versions)):
        named |= {(name, digests[name, number]) for name, number in released.items() if (name, number) in digests}
    for name, numbered in groupby(sorted(digests), key=lambda pair: pair[0]):
        named |= {(name, digests[pair]) for pair in list(numbered)[-policy.candidates :]}
    return named | _lately(
        policy,
        connection.execute(
            _of(select(publication.c.task, publication.c.digest, publication.c.at), publication, task)
        ).all(),
    )


def abandoned(policy: Retention) -> str:
    """A publish that began before this time, and was not begun again since, is given up: a day, or the grace period
    where that is longer.
    """
    return (datetime.now(UTC) - max(policy.grace, ABANDONED)).isoformat()


def snapshots_in_use(connection: Connection, policy: Retention, task: str | None = None) -> set[Name]:
    """Snapshots that a run used lately, and the last one that any run of the task used."""
    table = tables.snapshot
    return _lately(policy, connection.execute(_of(select(table.c.task, table.c.digest, table.c.at), table, task)).all())


def held_elsewhere(store: ObjectStore) -> set[Name]:
    """Prompts that a server's last report names."""
    return {(holding.task, holding.digest) for report in read_server_reports(store) for holding in report.holds}


def pointed(registry: Registry, task: str, pointers: Iterable[str]) -> set[Name]:
    """What aliases of the task name outside the ledger: the store's pointers, as servers read them, and MLflow's, as
    people set them.
    """
    bodies = read_all(registry.store, pointers)
    found = {(promotion.task, promotion.digest) for body in bodies.values() if (promotion := pointer_in(body))}
    aliases = registry.mlflow.aliases(task) if registry.mlflow else {}
    digests = registry.mlflow.digests(task) if registry.mlflow and aliases else {}
    return found | {(task, digests.get(number, "")) for number in aliases.values()}


def with_parts(kept: set[Name], manifests: Mapping[Name, PromptManifest]) -> set[Name]:
    """A digest names one prompt, whichever task it lies in: parents may be versions of other tasks."""
    homes: dict[str, list[Name]] = {}
    for name in manifests:
        homes.setdefault(name[1], []).append(name)
    found, todo = set(kept), list(kept)
    while todo:
        manifest = manifests.get(todo.pop())
        parts = [name for digest in (parts_of(manifest) if manifest else ()) for name in homes.get(digest, ())]
        todo += [name for name in parts if name not in found]
        found.update(parts)
    return found


def read_manifests(store: ObjectStore, names: Iterable[Name]) -> dict[Name, PromptManifest | None]:
    """The manifests of those prompts as they are stored, signed or not; None where one was altered. Absent ones are
    left out.
    """
    keys = {f"{prompt_prefix(*name)}/{MANIFEST_FILE}": name for name in names}
    return {keys[key]: _manifest(keys[key], body) for key, body in read_all(store, keys).items()}


def parts_of(manifest: PromptManifest) -> list[str]:
    """Digests of the prompts that it consists of or descends from."""
    return [*manifest.parents, *(manifest.members.digests if manifest.members else ())]


def combination(digest: str, sources: Sequence[Sequence[Name]]) -> list[Name] | None:
    """One snapshot of each source whose digests together have that digest, which a shared prompt states as its own.

    None where there is none, or where more than MAX_COMBINATIONS would have to be tried.
    """
    if math.prod(map(len, sources)) > MAX_COMBINATIONS:
        return None
    return next(
        (list(chosen) for chosen in itertools.product(*sources) if digest_of([name[1] for name in chosen]) == digest),
        None,
    )


def sources_in(task: str, trials: Iterable[str]) -> list[str]:
    """The tasks that a shared prompt, or a teacher of one, was trained for, in their order: its trials are called after
    them.
    """
    return [trial.split("/", 1)[1].removeprefix("teacher of ") for trial in trials if trial.startswith(f"{task}/")]


def _lately(policy: Retention, rows: Iterable[Row[Any]]) -> set[Name]:
    """Of rows (task, digest, at) those within the grace period, and each task's last one."""
    found: set[Name] = set()
    last: dict[str, tuple[str, str]] = {}
    for task, digest, at in rows:
        last[task] = max(last.get(task, ("", "")), (at, digest))
        if policy.fresh(datetime.fromisoformat(at)):
            found.add((task, digest))
    return found | {(task, digest) for task, (_, digest) in last.items()}


def _manifest(name: Name, body: bytes) -> PromptManifest | None:
    try:
        manifest = PromptManifest.model_validate_json(body)
    except ValidationError:
        return None
    return manifest if (manifest.task, manifest.digest()) == name else None


def _of(query: Select[Any], table: Table, task: str | None) -> Select[Any]:
    return query if task is None else query.where(table.c.task == task)
