"""Who uses which prompts and snapshots, as far as the ledger knows: what garbage collection and lineage ask."""

from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, Row, Select, and_, select

from ptpipeline.records.data import Snapshot
from ptpipeline.records.reports import Report
from ptpipeline.records.versions import VersionRef
from registry.ledger import tables
from registry.ledger.database import of_task
from registry.ledger.ledger import Ledger
from registry.ledger.results import Publication


class Name(NamedTuple):
    """A prompt, or a snapshot, of a task; versions of several tasks may share a digest."""

    task: str
    digest: str


class Use(NamedTuple):
    """When a prompt or a snapshot was used last."""

    name: Name
    at: str


class PromptUses(NamedTuple):
    """What the ledger says of prompts.

    `intents` are publishes under way, `promoted` prompts that any alias ever named, `releases` the versions of each
    release by task, `published` the publications.
    """

    intents: list[Use]
    promoted: set[Name]
    versions: dict[VersionRef, Name]
    releases: list[dict[str, int]]
    published: list[Use]


class SnapshotLink(NamedTuple):
    """A prompt that was trained or measured on a snapshot of its task."""

    prompt: Name
    snapshot: str


class Training(NamedTuple):
    """How a prompt was trained: on which snapshot, the names of its trials, and for how many steps."""

    prompt: Name
    snapshot: str
    trials: list[str]
    steps: int


class Registrations(NamedTuple):
    """The registered versions, how prompts were trained, and which were or are being collected."""

    versions: dict[Name, int]
    trainings: list[Training]
    tombstones: set[Name]


def prompt_uses(connection: Connection, task: str | None = None) -> PromptUses:
    """Return what the ledger says of prompts, of one task or all, within that transaction."""
    intent, promotion, version, publication = tables.intent, tables.promotion, tables.version, tables.publication
    # intents before the versions: a publish that ends meanwhile is in the one or in the other
    intents = of_task(select(intent.c.task, intent.c.digest, intent.c.at), intent, task)
    promoted = of_task(select(promotion.c.task, promotion.c.digest).distinct(), promotion, task)
    second = promotion.c.beside["digest"].as_string()
    beside = of_task(select(promotion.c.task, second.label("digest")).where(second.is_not(None)), promotion, task)
    versions = of_task(select(version.c.task, version.c.number, version.c.digest), version, task)
    published = of_task(select(publication.c.task, publication.c.digest, publication.c.at), publication, task)
    return PromptUses(
        intents=_uses(connection, intents),
        promoted={_name(row) for query in (promoted, beside) for row in connection.execute(query)},
        versions={VersionRef(row.task, row.number): _name(row) for row in connection.execute(versions)},
        releases=list(connection.scalars(select(tables.release.c.versions))),
        published=_uses(connection, published),
    )


def snapshot_uses(connection: Connection, task: str | None = None) -> list[Use]:
    """Return when runs used each snapshot last, of one task or all, within that transaction."""
    table = tables.snapshot
    return _uses(connection, of_task(select(table.c.task, table.c.digest, table.c.at), table, task))


def rows_keys(ledger: Ledger, task: str) -> dict[str, list[str]]:
    """Return where the evaluation rows of each prompt of the task were stored: digest -> keys."""
    table = tables.evaluation
    stored = select(table.c.digest, table.c.record["rows_key"].as_string().label("key")).where(table.c.task == task)
    keys: dict[str, list[str]] = {}
    with ledger.database.reading() as connection:
        for row in connection.execute(stored):
            keys.setdefault(row.digest, []).append(row.key)
    return keys


def reports(ledger: Ledger, task: str) -> list[Report]:
    """Return all reports on prompts of the task, and on its baselines."""
    table = tables.evaluation
    return [Report.model_validate(record) for record in _records(ledger, table.c.record, table.c.task == task)]


def publications(ledger: Ledger, task: str) -> list[Publication]:
    """Return how each version of the task came to be."""
    table = tables.publication
    return [Publication.model_validate(record) for record in _records(ledger, table.c.record, table.c.task == task)]


def snapshots(ledger: Ledger, name: Name) -> list[Snapshot]:
    """Return the records of a snapshot, newest first: one for each source that led to the same rows."""
    table = tables.snapshot
    of_name = and_(table.c.task == name.task, table.c.digest == name.digest)
    return [Snapshot.model_validate(record) for record in _records(ledger, table.c.record, of_name, table.c.at.desc())]


def snapshot_links(ledger: Ledger) -> list[SnapshotLink]:
    """Return which prompts were trained or measured on which snapshots of their tasks."""
    evaluation, publication = tables.evaluation, tables.publication
    links = []
    with ledger.database.reading() as connection:
        for table, snapshot in (
            (evaluation, evaluation.c.record["snapshot"]),
            (publication, publication.c.record[("tuned", "snapshot")]),
        ):
            rows = connection.execute(select(table.c.task, table.c.digest, snapshot.as_string().label("snapshot")))
            links += [SnapshotLink(_name(row), row.snapshot) for row in rows]
    return links


def trainings(ledger: Ledger) -> list[Training]:
    """Return how each published prompt was trained."""
    with ledger.database.reading() as connection:
        return _trainings(connection)


def registrations(ledger: Ledger) -> Registrations:
    """Return all versions with their trainings, read in one transaction."""
    version, tombstone = tables.version, tables.tombstone
    with ledger.database.reading() as connection:
        versions = connection.execute(select(version.c.task, version.c.digest, version.c.number)).all()
        trained = _trainings(connection)
        tombstones = connection.execute(select(tombstone.c.task, tombstone.c.digest)).all()
    return Registrations(
        versions={_name(row): row.number for row in versions},
        trainings=trained,
        tombstones={_name(row) for row in tombstones},
    )


def tasks_with(ledger: Ledger, digest: str) -> list[str]:
    """Return the tasks that registered a version of that digest."""
    with ledger.database.reading() as connection:
        return list(connection.scalars(select(tables.version.c.task).where(tables.version.c.digest == digest)))


def _records(ledger: Ledger, column: Column[Any], where: ColumnElement[bool], *order: Any) -> list[Any]:
    with ledger.database.reading() as connection:
        return list(connection.scalars(select(column).where(where).order_by(*order)))


def _trainings(connection: Connection) -> list[Training]:
    table = tables.publication
    snapshot, trials, steps = (table.c.record[("tuned", name)] for name in ("snapshot", "trials", "steps"))
    columns = snapshot.as_string().label("snapshot"), trials.label("trials"), steps.as_integer().label("steps")
    rows = connection.execute(select(table.c.task, table.c.digest, *columns))
    return [
        Training(_name(row), row.snapshot, [trial["name"] for trial in row.trials or []], row.steps) for row in rows
    ]


def _uses(connection: Connection, query: Select[Any]) -> list[Use]:
    return [Use(_name(row), row.at) for row in connection.execute(query)]


def _name(row: Row[Any]) -> Name:
    return Name(row.task, row.digest)
