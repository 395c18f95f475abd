"""The looks: how often which test rows decided about a candidate of a task.

A set of test rows grows by the rows of every look at it: rows that come a hundredth at a time never make it a fresh
one.
"""

from collections.abc import Iterable, Set

from sqlalchemy import Connection, func, select

from ptpipeline.gate.looks import OVERLAP, look_at, question
from ptpipeline.records import Look, Verdict, now
from registry.ledger import tables
from registry.ledger.database import insert, put
from registry.ledger.ledger import Ledger

_BYTES = 8  # of a row's id, which is 16 hex digits and a number where a text stands there more than once


def take(ledger: Ledger, task: str, asked: str, rows: Iterable[str], budget: float) -> Look:
    """The look that answers the question `asked` from the rows of these ids: the one there was, else the next at their
    test set.

    It is in the ledger before anything is compared, so that no answer is seen that was not counted.
    """
    with ledger.database.writing(f"look {task}") as connection:
        known = _known(connection, task, asked)
        if known is None:
            known = _next(connection, task, {_code(row) for row in rows})
            place = {"task": task, "test_set": known[0], "number": known[1]}
            connection.execute(insert(connection, tables.look).values(**place, question=asked, at=now()))
    return look_at(*known, budget)


def coming(ledger: Ledger, task: str, rows: Iterable[str], budget: float) -> Look:
    """The look that a new question about these rows would be; it is not taken by asking here."""
    with ledger.database.reading() as connection:
        test_set, _ = _set_or_new(connection, task, {_code(row) for row in rows})
        return look_at(test_set, _served(connection, task, test_set) + 1, budget)


def taken(ledger: Ledger, task: str, asked: str) -> bool:
    """Whether that question was answered already."""
    with ledger.database.reading() as connection:
        return _known(connection, task, asked) is not None


def count(ledger: Ledger, task: str, rows: Iterable[str]) -> int:
    """How many looks the test set of these rows has served."""
    with ledger.database.reading() as connection:
        test_set = _set_of(connection, task, {_code(row) for row in rows})
        return _served(connection, task, test_set[0]) if test_set else 0


def restore(connection: Connection, verdict: Verdict, rows: Iterable[str]) -> None:
    """Bring back the look that a verdict in the store tells of; one that is there stays as it is."""
    task, look = verdict.task, verdict.look
    if look is None:
        return
    stored = connection.scalar(
        select(tables.test_set.c.rows).where(tables.test_set.c.task == task, tables.test_set.c.number == look.test_set)
    )
    _put_set(connection, task, look.test_set, _rows_in(stored or b"") | {_code(row) for row in rows})
    place = {"task": task, "test_set": look.test_set, "number": look.number}
    answered = question((verdict.digest, verdict.champion), verdict.test_digest, verdict.policy)
    connection.execute(
        insert(connection, tables.look).values(**place, question=answered, at=now()).on_conflict_do_nothing()
    )


def _known(connection: Connection, task: str, asked: str) -> tuple[int, int] | None:
    table = tables.look
    row = connection.execute(
        select(table.c.test_set, table.c.number).where(table.c.task == task, table.c.question == asked)
    ).first()
    return (row.test_set, row.number) if row else None


def _next(connection: Connection, task: str, rows: Set[bytes]) -> tuple[int, int]:
    """Test set and number of the next look at these rows, which join the set."""
    number, before = _set_or_new(connection, task, rows)
    _put_set(connection, task, number, before | rows)
    return number, _served(connection, task, number) + 1


def _set_or_new(connection: Connection, task: str, rows: Set[bytes]) -> tuple[int, frozenset[bytes]]:
    last = connection.scalar(select(func.max(tables.test_set.c.number)).where(tables.test_set.c.task == task))
    return _set_of(connection, task, rows) or ((last or 0) + 1, frozenset())


def _set_of(connection: Connection, task: str, rows: Set[bytes]) -> tuple[int, frozenset[bytes]] | None:
    """The most looked at of the task's test sets that hold more than a stray few of these rows."""
    table, found = tables.test_set, []
    for row in connection.execute(select(table.c.number, table.c.rows).where(table.c.task == task)):
        held = _rows_in(row.rows)
        if len(held & rows) > OVERLAP * len(rows):
            found.append((_served(connection, task, row.number), row.number, held))
    return max(found, key=lambda item: item[:2])[1:] if found else None


def _served(connection: Connection, task: str, test_set: int) -> int:
    highest = connection.scalar(
        select(func.max(tables.look.c.number)).where(tables.look.c.task == task, tables.look.c.test_set == test_set)
    )
    return highest or 0


def _put_set(connection: Connection, task: str, number: int, rows: Set[bytes]) -> None:
    put(connection, tables.test_set, {"task": task, "number": number}, rows=b"".join(sorted(rows)), at=now())


def _rows_in(stored: bytes) -> frozenset[bytes]:
    return frozenset(stored[start : start + _BYTES] for start in range(0, len(stored), _BYTES))


def _code(row: str) -> bytes:
    return bytes.fromhex(row[: 2 * _BYTES])
