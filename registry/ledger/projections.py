"""What the ledger remembers of its projections: how far store and MLflow follow each alias, which writes to MLflow's
aliases may still be under way, and which of its aliases differed.
"""

import uuid
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, select

from ptpipeline.records.versions import Promotion
from registry.ledger import tables
from registry.ledger.clock import read_time
from registry.ledger.database import insert, put
from registry.ledger.lease import Lease
from registry.ledger.ledger import Ledger


class Projection(NamedTuple):
    """One follower (`store`, `mlflow`) of one alias."""

    target: str
    task: str
    alias: str


class Alias(NamedTuple):
    """An alias of a task."""

    task: str
    name: str


class Projections(NamedTuple):
    """The sequence number that each projection shows, and the aliases that differ in MLflow."""

    applied: dict[Projection, int]
    sighted: set[Alias]


def applied_projections(ledger: Ledger) -> Projections:
    """Return how far every projection follows, of all tasks."""
    table, sighting = tables.projection, tables.sighting
    with ledger.database.reading() as connection:
        rows = connection.execute(select(table.c.target, table.c.task, table.c.alias, table.c.applied_seq)).all()
        sighted = connection.execute(select(sighting.c.task, sighting.c.alias)).all()
    return Projections(
        applied={Projection(row.target, row.task, row.alias): row.applied_seq for row in rows},
        sighted={Alias(row.task, row.alias) for row in sighted},
    )


# ---------------------------------------------------------------- writes to an alias of MLflow


def note_attempt(ledger: Ledger, lease: Lease, head: Promotion) -> str:
    """Note that the holder of the lease is about to write the head to MLflow's alias; return the name of the note.

    Raises LeaseHeld if another process took the lease over.
    """
    owner = uuid.uuid4().hex
    with ledger.database.writing() as connection:
        lease.keep(connection)
        at = read_time(connection)
        row = {"task": head.task, "alias": head.alias, "digest": head.digest, "owner": owner, "at": at}
        connection.execute(insert(connection, tables.attempt).values(**row))
    return owner


def end_attempt(ledger: Ledger, lease: Lease, head: Promotion, owner: str, late: str | None) -> None:
    """Forget the note `owner`, the oldest note of a write of the digest `late`, and that the alias differed.

    Raises LeaseHeld if another process took the lease over: then every note stays.
    """
    table = tables.attempt
    with ledger.database.writing() as connection:
        lease.keep(connection)
        connection.execute(delete(table).where(table.c.owner == owner))
        if late is not None:
            notes = select(table.c.owner).where(*_attempts(head, late)).order_by(table.c.at).limit(1)
            connection.execute(delete(table).where(table.c.owner == notes.scalar_subquery()))
        connection.execute(delete(tables.sighting).where(*_sightings(head)))


def is_attempted(ledger: Ledger, head: Promotion, digest: str) -> bool:
    """Return whether a write of that digest to the head's alias in MLflow may still be under way."""
    with ledger.database.reading() as connection:
        notes = select(tables.attempt.c.owner).where(*_attempts(head, digest)).limit(1)
        return connection.execute(notes).first() is not None


def _attempts(head: Promotion, digest: str) -> tuple[ColumnElement[bool], ...]:
    table = tables.attempt
    return table.c.task == head.task, table.c.alias == head.alias, table.c.digest == digest


# ---------------------------------------------------------------- aliases that differ


def sight(ledger: Ledger, head: Promotion, digest: str) -> float:
    """Return for how many seconds MLflow's alias is known to name `digest` instead of the head, by the database's
    clock; the first call notes it and returns 0.
    """
    with ledger.database.writing() as connection:
        clock = ledger.database.clock(connection)
        row = connection.execute(select(tables.sighting).where(*_sightings(head))).one_or_none()
        known = row is not None and (row.seq, row.found) == (head.seq, digest)
        # what was seen in the future counts again: the clock was set back, or the machine started again
        if row is None or not known or row.seen_at > clock:
            key = {"task": head.task, "alias": head.alias}
            put(connection, tables.sighting, key, seq=head.seq, found=digest, seen_at=clock)
            return 0.0
        return clock - float(row.seen_at)


def forget_sighting(ledger: Ledger, head: Promotion) -> None:
    """Forget that the alias differed: what differs next is new."""
    with ledger.database.writing() as connection:
        connection.execute(delete(tables.sighting).where(*_sightings(head)))


def _sightings(head: Promotion) -> tuple[ColumnElement[bool], ...]:
    return tables.sighting.c.task == head.task, tables.sighting.c.alias == head.alias
