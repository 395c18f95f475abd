"""What happened and is told to others: written in the transaction in which it happens, so that no crash loses it.

Each target is told each event until it took it, with growing waits, and never by two processes at once for long: who
sends an event first puts off when it is due again. So an event may arrive twice, with one id.
"""

import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, and_, func, select, update

from ptpipeline.records.base import digest_of
from ptpipeline.records.versions import Promotion
from registry.ledger import tables
from registry.ledger.clock import read_time
from registry.ledger.database import Database, insert, put, seconds_left

Kind = Literal[
    "promotion",
    "rollback",
    "gate_failed",
    "approval_wanted",
    "night_ended",
    "stale_task",
    "broken_task",
    "night_missing",
    "night_too_long",
]

FIRST_WAIT, LONGEST_WAIT = 30.0, 3600.0  # seconds until an event that was not taken is due again; doubled each time
BACKLOG = timedelta(days=1)  # a target that is new is told what happened this long before it was first seen
SETTLED = timedelta(hours=1)


class Event(NamedTuple):
    """What happened; `seq` is its order, `id` what tells a receiver that it came twice, `taken` when it was taken to be
    sent: seconds since 1970 by the clock of the database's machine.
    """

    seq: int
    id: str
    kind: str
    record: dict[str, Any]
    at: str
    taken: float


class Backlog(NamedTuple):
    """What a target was not told yet: how many events, and since when the oldest of them waits."""

    events: int
    oldest: str | None


def emit(connection: Connection, kind: Kind, record: Mapping[str, Any], once: Any = None) -> None:
    """Add an event to the transaction. With `once` (JSON values) there is one event of that kind for it, ever."""
    name = uuid.uuid4().hex if once is None else digest_of([kind, once])[:32]
    row = {"id": f"evt_{name}", "kind": kind, "record": dict(record), "at": read_time(connection)}
    connection.execute(insert(connection, tables.event).values(**row).on_conflict_do_nothing(index_elements=["id"]))


def emit_promotion(connection: Connection, promotion: Promotion) -> None:
    """Add the event of a promotion, or of a rollback: its alias named that version before."""
    table = tables.promotion
    earlier = select(table.c.seq).where(table.c.task == promotion.task, table.c.alias == promotion.alias)
    returns = earlier.where(table.c.version == promotion.version, table.c.seq < promotion.seq)
    came_back = promotion.beside is None and connection.execute(returns.limit(1)).first() is not None
    kind: Kind = "rollback" if came_back else "promotion"
    names = ("task", "alias", "seq", "actor", "reason", "verdict", "override", "release")
    told = {name: getattr(promotion, name) for name in names}
    if promotion.beside:
        told["beside"] = promotion.beside.to_json()
    emit(connection, kind, told | {"from": promotion.previous, "to": promotion.version})


def record_event(database: Database, kind: Kind, record: Mapping[str, Any], once: Any = None) -> None:
    """Add an event that nothing else is written with."""
    with database.writing() as connection:
        emit(connection, kind, record, once)


def take_due(database: Database, target: str) -> Event | None:
    """Return the event that the target is to be told now; None if it was told all, or all the rest must wait.

    It is the oldest of those that were tried least: what a target never takes holds up nothing else. The event is put
    off before it is returned: whoever dies while sending leaves it due again after a wait.
    """
    event, delivery = tables.event, tables.delivery
    with database.writing(f"deliver {target}") as connection:
        clock = database.clock(connection)
        mine = and_(delivery.c.event == event.c.seq, delivery.c.target == target)
        waiting = (
            select(event, delivery.c.attempts, delivery.c.due)
            .outerjoin(delivery, mine)
            .where(event.c.seq >= _since(connection, target), delivery.c.delivered.is_(None))
        )
        rows = connection.execute(waiting).all()
        if not rows:
            _advance(connection, target)
        due = [row for row in rows if row.due is None or not seconds_left(row.due, clock, LONGEST_WAIT)]
        row = min(due, key=lambda row: (row.attempts or 0, row.seq), default=None)
        if row is None:
            return None
        attempts = (row.attempts or 0) + 1
        wait = min(FIRST_WAIT * 2 ** min(attempts - 1, 16), LONGEST_WAIT)
        put(connection, delivery, {"event": row.seq, "target": target}, attempts=attempts, due=clock + wait)
        return Event(row.seq, row.id, row.kind, row.record, row.at, database.calendar(connection))


def record_delivered(database: Database, target: str, event: Event) -> None:
    """Note that the target took the event."""
    table = tables.delivery
    mine = and_(table.c.event == event.seq, table.c.target == target)
    with database.writing() as connection:
        connection.execute(update(table).where(mine).values(delivered=read_time(connection)))


def find_backlog(database: Database, target: str) -> Backlog:
    """Return what that target was tried to be told, and did not take."""
    event, delivery = tables.event, tables.delivery
    query = (
        select(func.count(), func.min(event.c.at))
        .join(delivery, delivery.c.event == event.c.seq)
        .where(delivery.c.target == target, delivery.c.delivered.is_(None))
    )
    with database.reading() as connection:
        count, oldest = connection.execute(query).one()
        return Backlog(count, oldest)


def _since(connection: Connection, target: str) -> int:
    """Return the first event that may concern the target; of a new one it is noted."""
    table = tables.subscriber
    since = connection.scalar(select(table.c.since).where(table.c.target == target))
    if since is None:
        since = _first_since(connection, BACKLOG)
        put(connection, table, {"target": target}, since=since, at=read_time(connection))
    return int(since)


def _advance(connection: Connection, target: str) -> None:
    """Look no more at what the target was told long ago: long enough that no transaction from then is open."""
    put(
        connection,
        tables.subscriber,
        {"target": target},
        since=_first_since(connection, SETTLED),
        at=read_time(connection),
    )


def _first_since(connection: Connection, age: timedelta) -> int:
    """Return the number behind that of the last event which is older than that."""
    table = tables.event
    since = datetime.fromisoformat(read_time(connection)) - age
    older = select(func.max(table.c.seq)).where(table.c.at < since.isoformat())
    return (connection.scalar(older) or 0) + 1
