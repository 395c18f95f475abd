"""All that the ledger holds of one task, as a comparison with the object store needs it."""

from typing import NamedTuple

from sqlalchemy import select

from ptpipeline.records.versions import Promotion
from registry.ledger import tables
from registry.ledger.ledger import Ledger


class Holdings(NamedTuple):
    """What the ledger holds of a task.

    `versions` are number -> digest, `history` is alias -> promotions by seq, `verdicts` are the verdict's digest -> the
    prompt's, the oldest first, `passed` those of them that passed. `published` are the digests whose publication is
    known, `intents` digest -> when the publish began, `tombstones` the digests that are or were collected.
    """

    versions: dict[int, str]
    history: dict[str, list[Promotion]]
    verdicts: dict[str, str]
    passed: set[str]
    published: set[str]
    intents: dict[str, str]
    tombstones: set[str]


def holdings(ledger: Ledger, task: str) -> Holdings:
    """Return what the ledger holds of the task."""
    history: dict[str, list[Promotion]] = {}
    for promotion in ledger.history(task):
        history.setdefault(promotion.alias, []).append(promotion)
    version, verdict, publication, tombstone = tables.version, tables.verdict, tables.publication, tables.tombstone
    with ledger.database.reading() as connection:
        versions = connection.execute(select(version.c.number, version.c.digest).where(version.c.task == task)).all()
        verdicts = connection.execute(
            select(verdict.c.verdict, verdict.c.digest, verdict.c.passed)
            .where(verdict.c.task == task)
            .order_by(verdict.c.at)
        ).all()
        published = connection.scalars(select(publication.c.digest).where(publication.c.task == task)).all()
        tombstones = connection.scalars(select(tombstone.c.digest).where(tombstone.c.task == task)).all()
    return Holdings(
        versions={row.number: row.digest for row in versions},
        history={alias: sorted(rows, key=lambda row: row.seq) for alias, rows in history.items()},
        verdicts={row.verdict: row.digest for row in verdicts},
        passed={row.verdict for row in verdicts if row.passed},
        published=set(published),
        intents={intent.digest: intent.at for intent in ledger.intents(task)},
        tombstones=set(tombstones),
    )
