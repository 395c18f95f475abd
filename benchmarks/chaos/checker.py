"""The checker: compares what was acknowledged with ledger, MLflow, pointers and bytes; it does not know how they are
written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import ValidationError
from sqlalchemy import select

from benchmarks.chaos.history import Witnesses, find_violations
from benchmarks.chaos.worker import LEASE_SECONDS
from ptpipeline.errors import PtpError
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.versions import PRODUCTION, Pointer, Promotion, PromptVersion, VersionName
from ptpipeline.storage.keys import history_key, pointer_key, version_key
from registry.ledger import tables
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.repair.doctor import examine


class Finding(NamedTuple):
    """One acknowledged thing that is lost, or one disagreement."""

    kind: Literal["lost", "torn", "wrong read"]
    what: str


@dataclass
class Acknowledged:
    """What a target acknowledged, by its workers' logs. `started`: names of the jobs that began; `edited`: tasks that a
    person edited in MLflow's UI.
    """

    versions: list[PromptVersion] = field(default_factory=list)
    promotions: list[Promotion] = field(default_factory=list)
    started: set[str] = field(default_factory=set)
    edited: set[str] = field(default_factory=set)
    witnesses: Witnesses = field(default_factory=Witnesses)
    crashes: list[str] = field(default_factory=list)


def check(registry: Registry, tasks: Sequence[str], acknowledged: Acknowledged) -> list[Finding]:
    """Check every invariant of every task."""
    torn = [
        what
        for task in tasks
        for what in (*_bytes(registry, task), *_history(registry, task, acknowledged), *_projections(registry, task))
    ]
    return [
        *find_lost(registry, tasks, acknowledged),
        *find_wrong_reads(registry, acknowledged.witnesses),
        *(Finding("torn", what) for what in (*torn, *_differences(registry), *_leases(registry))),
        *(Finding("torn", what) for what in acknowledged.crashes),
    ]


def find_lost(registry: Registry, tasks: Sequence[str], acknowledged: Acknowledged) -> list[Finding]:
    """Return what was acknowledged and is missing or different in the ledger."""
    return [
        Finding("lost", what)
        for task in tasks
        for what in (*_lost_versions(registry, task, acknowledged), *_lost_promotions(registry, task, acknowledged))
    ]


def find_wrong_reads(registry: Registry, witnesses: Witnesses) -> list[Finding]:
    """Return what readers of the store should not have seen: half a prompt, or an order of versions that never was."""
    wrong = [
        f"{alias.task}@{alias.name}: {violation}"
        for alias in witnesses.reads
        for violation in find_violations(witnesses.history(alias, registry.ledger.history(alias.task, alias.name)))
    ]
    return [Finding("wrong read", what) for what in (*witnesses.wrong, *wrong)]


def _lost_versions(registry: Registry, task: str, acknowledged: Acknowledged) -> Iterator[str]:
    """Acknowledged versions that are missing or different in the ledger."""
    stored = {version.number: version.digest for version in registry.ledger.versions(task, limit=None)}
    for version in acknowledged.versions:
        if version.task == task and stored.get(version.number) != version.digest:
            yield (
                f"{task}: version {version.number} was acknowledged as {version.digest[:12]}, the ledger holds "
                f"{stored.get(version.number, 'nothing')[:12]}"
            )


def _lost_promotions(registry: Registry, task: str, acknowledged: Acknowledged) -> Iterator[str]:
    stored = registry.ledger.history(task)
    for promotion in acknowledged.promotions:
        if promotion.task == task and promotion not in stored:
            yield (
                f"{task}: promotion {promotion!r} was acknowledged, the ledger holds "
                f"{[row for row in stored if (row.alias, row.seq) == (promotion.alias, promotion.seq)]}"
            )


def _bytes(registry: Registry, task: str) -> Iterator[str]:
    """Versions, acknowledged or not, whose bytes, name in the store or page in MLflow are wrong.

    Only a version that was never promoted may have been collected, and be on its way back by a publish that was
    interrupted.
    """
    begun = {intent.digest for intent in registry.ledger.intents(task)}
    versions, promoted = (
        registry.ledger.versions(task, limit=None),
        {row.digest for row in registry.ledger.history(task)},
    )
    shown = set(_mlflow(registry).digests(task).values())
    if sorted(version.number for version in versions) != list(range(1, len(versions) + 1)):
        yield f"{task}: versions are numbered {[version.number for version in versions]}"
    for version in versions:
        if (version.collected or version.digest in begun) and version.digest not in promoted:
            continue
        try:
            read_artifact(registry.store, task, version.digest)
            named = VersionName.model_validate_json(registry.store.read(version_key(task, version.number)).body).digest
        except (PtpError, ValidationError) as error:
            yield f"{task}: version {version.number}: {error}"
            continue
        if named != version.digest:
            yield (
                f"{task}: number {version.number} names {named[:12]} in the store, {version.digest[:12]} in the ledger"
            )
        if version.digest not in shown:
            yield f"{task}: version {version.number} ({version.digest[:12]}) is not in MLflow"


def _history(registry: Registry, task: str, acknowledged: Acknowledged) -> Iterator[str]:
    """Rows of the history that are out of order, that no job made, that are there twice, or that passed no gate."""
    digests = {version.number: version.digest for version in registry.ledger.versions(task, limit=None)}
    rows = registry.ledger.history(task)
    for alias in sorted({row.alias for row in rows}):
        of_alias = sorted((row for row in rows if row.alias == alias), key=lambda row: row.seq)
        if [row.seq for row in of_alias] != list(range(1, len(of_alias) + 1)):
            yield f"{task}@{alias}: the history is numbered {[row.seq for row in of_alias]}"
        if [row.previous for row in of_alias] != [None, *(row.version for row in of_alias[:-1])]:
            versions, previous = [row.version for row in of_alias], [row.previous for row in of_alias]
            yield f"{task}@{alias}: versions {versions} follow {previous}"
        reasons = [row.reason for row in of_alias if row.actor != "mlflow-ui"]
        if len(set(reasons)) < len(reasons) or not set(reasons) <= acknowledged.started:
            yield f"{task}@{alias}: promoted for {reasons}"
        yield from (
            f"{task}@{alias}: {row!r} has another digest than the version"
            for row in of_alias
            if digests.get(row.version) != row.digest
        )
        yield from (
            f"{task}@{alias}: {row!r} came from MLflow, but nobody edited there"
            for row in of_alias
            if row.actor == "mlflow-ui" and task not in acknowledged.edited
        )
    yield from (
        f"{task}: {row!r} passed no gate"
        for row in rows
        if row.alias == PRODUCTION and not row.override and not _passed(registry, row)
    )


def _passed(registry: Registry, row: Promotion) -> bool:
    verdict = registry.ledger.verdict(row.verdict) if row.verdict else None
    return verdict is not None and verdict.passed and verdict.digest == row.digest


def _projections(registry: Registry, task: str) -> Iterator[str]:
    """Aliases whose head, pointer, MLflow alias and stored history disagree."""
    mlflow = _mlflow(registry)
    digests, aliases = mlflow.digests(task), mlflow.aliases(task)
    rows = registry.ledger.history(task)
    for alias in sorted({row.alias for row in rows}):
        head = max((row for row in rows if row.alias == alias), key=lambda row: row.seq)
        try:
            pointer = Pointer.model_validate_json(registry.store.read(pointer_key(task, alias)).body).promotion
        except (PtpError, ValidationError) as error:
            yield f"{task}@{alias}: pointer: {error}"
        else:
            if pointer != head:
                yield f"{task}@{alias}: the head is {head!r}, the pointer {pointer!r}"
        if digests.get(aliases.get(alias, "")) != head.digest:
            yield (
                f"{task}@{alias}: the head is seq {head.seq}, {head.digest[:12]}, MLflow's alias "
                f"{aliases.get(alias)}, {digests.get(aliases.get(alias, ''), 'nothing')[:12]}"
            )
    for row in rows:
        try:
            stored = Promotion.model_validate_json(registry.store.read(history_key(task, row.alias, row.seq)).body)
        except (PtpError, ValidationError) as error:
            yield f"{task}@{row.alias}: stored history: {error}"
        else:
            if stored != row:
                yield f"{task}@{row.alias}: {row!r} is {stored!r} in the stored history"


def _differences(registry: Registry) -> Iterator[str]:
    """What the doctor finds, without interrupted publishes (a repeat finishes them) and leases (see `_leases`)."""
    yield from (
        f"doctor: {difference!r}" for difference in examine(registry) if difference.kind not in ("publish", "lease")
    )


def _leases(registry: Registry) -> Iterator[str]:
    """Leases whose end is further away than a lease lasts."""
    with registry.ledger.database.reading() as connection:
        now = registry.ledger.database.clock(connection)
        for row in connection.execute(select(tables.lease)):
            if row.expires_at > now + LEASE_SECONDS:
                yield f"lease {row.name} of {row.owner} ends in {row.expires_at - now:.0f} s"


def _mlflow(registry: Registry) -> MlflowStore:
    if registry.mlflow is None:
        raise ValueError("chaos needs MLflow")
    return registry.mlflow
