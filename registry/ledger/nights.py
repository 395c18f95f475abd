"""Nights as the ledger remembers them: when each ran, what began it, and what it came to for each task.

A row of a night is written when it begins, and completed once, when it ends: one that was killed stays without an end.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, func, select, update

from ptpipeline.records.base import Record
from registry.ledger import tables
from registry.ledger.clock import read_time
from registry.ledger.database import insert
from registry.ledger.events import emit
from registry.ledger.ledger import Ledger


class NightTask(Record):
    """What a night came to for one task; what is unknown is None, such as the verdict of a task that failed.

    `rows` are those of the snapshot that it trained on or was judged by; tokens and seconds are what the training of
    that version took of its gang.
    """

    task: str
    status: str
    reason: str
    verdict: str | None = None
    version: int | None = None
    rows: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    processor_seconds: float | None = None


class RecordedNight(Record):
    """One night: the flow that ran, what caused it, its page, and how it ended; no end if it runs or was killed."""

    id: str
    flow: str
    cause: str
    page: str | None
    started: str
    ended: str | None = None
    state: str | None = None
    tasks: tuple[NightTask, ...] = ()


def begin_night(ledger: Ledger, night: RecordedNight, again: str | None = None) -> str:
    """Note that a night began, and return its id; a repeat changes nothing, such as the run that goes on with it.

    If the night of that id has ended, and is run `again`, that is the id of another night.
    """
    row = _row(night)
    with ledger.database.writing() as connection:
        ended = select(tables.night.c.ended).where(tables.night.c.id == night.id)
        if again and connection.execute(ended).scalar_one_or_none():
            row["id"] = again
        connection.execute(insert(connection, tables.night).values(**row).on_conflict_do_nothing())
    return str(row["id"])


def end_night(ledger: Ledger, night: RecordedNight, state: str, tasks: Sequence[NightTask]) -> None:
    """Note how a night ended, and what it came to for each task; a night that has ended stays as it is.

    One whose beginning could not be noted, because the ledger was away, is noted now.
    """
    table, night_task = tables.night, tables.night_task
    with ledger.database.writing() as connection:
        connection.execute(insert(connection, table).values(**_row(night)).on_conflict_do_nothing())
        mine = update(table).where(table.c.id == night.id, table.c.ended.is_(None))
        if connection.execute(mine.values(ended=read_time(connection), state=state)).rowcount:
            emit(connection, "night_ended", _describe(connection, night.id, state, tasks))
            for task in tasks:
                row = {"night": night.id, "at": read_time(connection), **task.model_dump()}
                connection.execute(insert(connection, night_task).values(**row).on_conflict_do_nothing())


def _row(night: RecordedNight) -> dict[str, Any]:
    return night.model_dump(exclude={"tasks", "ended", "state"})


def _describe(connection: Connection, id_: str, state: str, tasks: Sequence[NightTask]) -> dict[str, object]:
    """Return what is told to others of a night that ended: which task came to what."""
    night = connection.execute(select(tables.night).where(tables.night.c.id == id_)).one()
    statuses = Counter(task.status for task in tasks)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    return {
        "task": None,
        "alias": None,
        "actor": night.cause,
        "from": None,
        "to": None,
        "reason": f"{night.flow} ended as {state}: {counts or 'no tasks'}",
        "verdict": None,
        "page": night.page,
        "tasks": {task.task: task.status for task in tasks},
    }


def list_nights(ledger: Ledger, limit: int) -> list[RecordedNight]:
    """Return the newest nights with their tasks, newest first."""
    night, night_task = tables.night, tables.night_task
    with ledger.database.reading() as connection:
        rows = connection.execute(select(night).order_by(night.c.started.desc()).limit(limit)).all()
        mine = select(night_task).where(night_task.c.night.in_([row.id for row in rows]))
        tasks: dict[str, list[NightTask]] = {row.id: [] for row in rows}
        for row in connection.execute(mine.order_by(night_task.c.task)):
            known = {name: value for name, value in row._mapping.items() if name in NightTask.model_fields}
            tasks[row.night].append(NightTask(**known))
    return [RecordedNight(**row._mapping, tasks=tuple(tasks[row.id])) for row in rows]


class TaskTotal(NamedTuple):
    """All nights of one task: how many came to which status, what its trainings took, and how the last one ended.

    The training of a version counts once, however many nights told of it.
    """

    task: str
    statuses: dict[str, int]
    tokens: int
    seconds: float
    processor_seconds: float
    last: str
    verdict: str | None


def sum_tasks(ledger: Ledger) -> list[TaskTotal]:
    """Return the totals of each task that a night came to an end for, by task."""
    table = tables.night_task
    statuses = select(table.c.task, table.c.status, func.count().label("nights")).group_by(table.c.task, table.c.status)
    costs = [
        func.max(column).label(column.name) for column in (table.c.tokens, table.c.seconds, table.c.processor_seconds)
    ]
    trained = select(table.c.task, table.c.version, *costs).group_by(table.c.task, table.c.version)
    newest = select(table.c.task, func.max(table.c.at).label("at")).group_by(table.c.task).subquery()
    last = select(table).join(newest, and_(table.c.task == newest.c.task, table.c.at == newest.c.at))
    with ledger.database.reading() as connection:
        counts = connection.execute(statuses).all()
        trainings = connection.execute(trained).all()
        return [
            TaskTotal(
                row.task,
                {one.status: one.nights for one in counts if one.task == row.task},
                sum(one.tokens or 0 for one in trainings if one.task == row.task),
                sum(one.seconds or 0.0 for one in trainings if one.task == row.task),
                sum(one.processor_seconds or 0.0 for one in trainings if one.task == row.task),
                row.at,
                row.verdict,
            )
            for row in connection.execute(last.order_by(table.c.task))
        ]
