"""Adds to the ledger what the object store proves of a lost one. Rows are only added, or replaced by newer ones."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table

from ptpipeline.records.data import Snapshot
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import Promotion, PromptVersion
from registry.failpoints import reached
from registry.ledger import tables
from registry.ledger.clock import read_time
from registry.ledger.database import insert
from registry.ledger.ledger import Intent, Ledger, Release
from registry.ledger.looks import restore_look
from registry.ledger.results import Publication


class RecoveredPrompt(NamedTuple):
    """How a prompt was made, measured and judged, `rows` by the ids of which test rows; `at` is when it was stored,
    `judged_at` when the verdict became the newest on it.
    """

    publication: Publication
    report: Report | None
    verdict: Verdict | None
    rows: list[str]
    at: str
    judged_at: str


class Recovery(NamedTuple):
    """What the ledger lost of a task."""

    task: str
    prompts: list[RecoveredPrompt]
    versions: list[PromptVersion]
    promotions: list[Promotion]
    intents: list[Intent]


class StoredSnapshot(NamedTuple):
    """A snapshot, and when it was stored."""

    snapshot: Snapshot
    at: datetime


def recover_task(ledger: Ledger, lost: Recovery) -> None:
    """Add all of it in one transaction. A version that is `collected` gets the mark of a deleted one."""
    with ledger.database.writing(f"version {lost.task}") as connection:
        for prompt in lost.prompts:
            _add_prompt(connection, prompt)
        reached("rebuild dossiers taken")
        for version in lost.versions:
            _add_version(connection, version)
        for promotion in lost.promotions:
            _add(connection, tables.promotion, tables.promotion_columns(promotion))
        for intent in lost.intents:
            _add(connection, tables.intent, intent.model_dump())


def recover_snapshots(ledger: Ledger, snapshots: Iterable[StoredSnapshot]) -> None:
    """Add snapshots under their source keys."""
    with ledger.database.writing() as connection:
        for snapshot, at in snapshots:
            _add_newer(
                connection,
                tables.snapshot,
                {"task": snapshot.task, "source_key": snapshot.source_key},
                digest=snapshot.digest,
                record=snapshot.to_json(),
                at=at.isoformat(timespec="microseconds"),
            )


def recover_releases(ledger: Ledger, releases: Iterable[Release]) -> None:
    """Add releases."""
    with ledger.database.writing() as connection:
        for release in releases:
            _add(connection, tables.release, release.model_dump())


def _add_prompt(connection: Connection, prompt: RecoveredPrompt) -> None:
    publication, report, verdict, at = prompt.publication, prompt.report, prompt.verdict, prompt.at
    tuned = publication.tuned
    who = {"task": tuned.task, "digest": tuned.digest}
    trained = {"task": tuned.task, "training_key": tuned.training_key}
    _add_newer(connection, tables.training, trained, record=tuned.to_json(), at=at)
    # the next run of the task knows whether texts may be shown
    shown = publication.model_copy(update={"mistakes": None})
    _add_newer(connection, tables.publication, who, record=shown.to_json(), at=at)
    if report:
        key = {"evaluation_key": report.evaluation_key}
        _add_newer(connection, tables.evaluation, key, **who, record=report.to_json(), at=prompt.judged_at)
    if verdict:
        values = {**who, "gate_key": verdict.gate_key, "passed": verdict.passed, "record": verdict.to_json()}
        _add_newer(connection, tables.verdict, {"verdict": verdict.verdict_digest()}, **values, at=prompt.judged_at)
        restore_look(connection, verdict, prompt.rows)


def _add_version(connection: Connection, version: PromptVersion) -> None:
    name = {"task": version.task, "digest": version.digest}
    _add(connection, tables.version, {**name, "number": version.number, "at": version.registered_at})
    if version.collected:
        _add(connection, tables.tombstone, {**name, "owner": "rebuild", "expires_at": 0.0, "at": read_time(connection)})


def _add(connection: Connection, table: Table, row: dict[str, Any]) -> None:
    connection.execute(insert(connection, table).values(**row).on_conflict_do_nothing())


def _add_newer(connection: Connection, table: Table, key: dict[str, str], **values: Any) -> None:
    newer = table.c.at < values["at"]
    connection.execute(
        insert(connection, table)
        .values(**key, **values)
        .on_conflict_do_update(index_elements=list(key), set_=values, where=newer)
    )
