"""Counts how often which test rows decided about a candidate of a task: the looks at them.

A set of test rows grows by the rows of every look at it, so that rows that are exchanged a hundredth at a time never
make a fresh set.
"""

from collections.abc import Iterable, Set
from typing import NamedTuple

from sqlalchemy import Connection, func, select, update

from ptpipeline.gate.spending import Budget, look_at, question_of, reveal_digest
from ptpipeline.records.verdicts import Look, Verdict
from registry.ledger import tables
from registry.ledger.clock import read_time
from registry.ledger.database import insert, put
from registry.ledger.ledger import Ledger

OVERLAP = 0.01  # a set of test rows that shares more of its rows than this with an earlier set is not fresh
_BYTES = 8  # of a row's id: 16 hex digits, then a number if its text occurs more than once


class _Place(NamedTuple):
    """Which look at which test set."""

    test_set: int
    number: int


class _RowSet(NamedTuple):
    """A test set: its number and its rows by their codes."""

    number: int
    rows: frozenset[bytes]


def take_look(ledger: Ledger, task: str, question: str, rows: Iterable[str], budget: Budget) -> Look:
    """Return the look that answers `question` from the rows of these ids: the one that did, else the next one at their
    test set.

    It is in the ledger, with what it spends, before anything is compared: so no answer is seen that was not counted.
    """
    with ledger.database.writing(f"look {task}") as connection:
        place = _find(connection, task, question) or _next(connection, task, {_code(row) for row in rows})
        look = look_at(*place, budget, _read_looks(connection, task, place.test_set))
        _put(connection, task, look, question)
        return look


def next_look(ledger: Ledger, task: str, rows: Iterable[str], budget: Budget) -> Look:
    """Return the look that a new question about these rows would take; this call does not take it."""
    with ledger.database.reading() as connection:
        test_set = _set_or_new(connection, task, {_code(row) for row in rows}).number
        number = _count(connection, task, test_set) + 1
        return look_at(test_set, number, budget, _read_looks(connection, task, test_set))


def is_answered(ledger: Ledger, task: str, question: str) -> bool:
    """Return whether a look answered that question already."""
    with ledger.database.reading() as connection:
        return _find(connection, task, question) is not None


def count_looks(ledger: Ledger, task: str, rows: Iterable[str]) -> int:
    """Return how many looks the test set of these rows has served."""
    with ledger.database.reading() as connection:
        test_set = _set_of(connection, task, {_code(row) for row in rows})
        return _count(connection, task, test_set.number) if test_set else 0


def list_judging(ledger: Ledger, task: str) -> set[str]:
    """Return the texts, by digest, of all rows that ever judged a candidate of the task."""
    with ledger.database.reading() as connection:
        stored = connection.scalars(select(tables.test_set.c.rows).where(tables.test_set.c.task == task))
        return {code.hex() for rows in stored for code in _decode(rows)}


def restore_look(connection: Connection, verdict: Verdict, rows: Iterable[str]) -> None:
    """Add the look that a stored verdict was decided by, and the one that revealed it, with their rows.

    A look that is there stays as it is; what it spent is added if an older ptpipeline did not keep that.
    """
    codes = {_code(row) for row in rows}
    if verdict.look:
        _put_look(connection, verdict.task, verdict.look, question_of(verdict), codes)
    if verdict.reveal:
        _put_look(connection, verdict.task, verdict.reveal.look, reveal_digest(verdict), codes)


def _put_look(connection: Connection, task: str, look: Look, question: str, rows: Set[bytes]) -> None:
    stored = connection.scalar(
        select(tables.test_set.c.rows).where(tables.test_set.c.task == task, tables.test_set.c.number == look.test_set)
    )
    _put_set(connection, task, _RowSet(look.test_set, _decode(stored or b"") | rows))
    _put(connection, task, look, question)


def _put(connection: Connection, task: str, look: Look, question: str) -> None:
    """Add the look; of one that is there only what it spent, if that is not known."""
    table, figures = tables.look, {"alpha": look.alpha, "spent": look.spent, "budget": look.budget}
    row = {
        "task": task,
        "test_set": look.test_set,
        "number": look.number,
        "question": question,
        "at": read_time(connection),
    }
    connection.execute(insert(connection, table).values(**row, **figures).on_conflict_do_nothing())
    unknown = (table.c.task == task, table.c.question == question, table.c.alpha.is_(None))
    connection.execute(update(table).where(*unknown).values(**figures))


def _read_looks(connection: Connection, task: str, test_set: int) -> dict[int, Look]:
    """The looks at that set, by number, whose shares are known."""
    table = tables.look
    columns = (table.c.test_set, table.c.number, table.c.alpha, table.c.spent, table.c.budget)
    mine = select(*columns).where(table.c.task == task, table.c.test_set == test_set, table.c.alpha.is_not(None))
    return {row.number: Look(**row._mapping) for row in connection.execute(mine)}


def _find(connection: Connection, task: str, question: str) -> _Place | None:
    table = tables.look
    place = select(table.c.test_set, table.c.number).where(table.c.task == task, table.c.question == question)
    row = connection.execute(place).first()
    return _Place(row.test_set, row.number) if row else None


def _next(connection: Connection, task: str, rows: Set[bytes]) -> _Place:
    """The next look at these rows, which join its test set."""
    test_set = _set_or_new(connection, task, rows)
    _put_set(connection, task, _RowSet(test_set.number, test_set.rows | rows))
    return _Place(test_set.number, _count(connection, task, test_set.number) + 1)


def _set_or_new(connection: Connection, task: str, rows: Set[bytes]) -> _RowSet:
    last = connection.scalar(select(func.max(tables.test_set.c.number)).where(tables.test_set.c.task == task))
    return _set_of(connection, task, rows) or _RowSet((last or 0) + 1, frozenset())


def _set_of(connection: Connection, task: str, rows: Set[bytes]) -> _RowSet | None:
    """Of the task's test sets that share more than OVERLAP of these rows the one with most looks, then the newest."""
    table = tables.test_set
    sets = [
        _RowSet(row.number, _decode(row.rows))
        for row in connection.execute(select(table.c.number, table.c.rows).where(table.c.task == task))
    ]
    overlapping = [test_set for test_set in sets if len(test_set.rows & rows) > OVERLAP * len(rows)]
    return max(overlapping, key=lambda item: (_count(connection, task, item.number), item.number), default=None)


def _count(connection: Connection, task: str, test_set: int) -> int:
    highest = connection.scalar(
        select(func.max(tables.look.c.number)).where(tables.look.c.task == task, tables.look.c.test_set == test_set)
    )
    return highest or 0


def _put_set(connection: Connection, task: str, test_set: _RowSet) -> None:
    rows = b"".join(sorted(test_set.rows))
    put(connection, tables.test_set, {"task": task, "number": test_set.number}, rows=rows, at=read_time(connection))


def _decode(stored: bytes) -> frozenset[bytes]:
    return frozenset(stored[start : start + _BYTES] for start in range(0, len(stored), _BYTES))


def _code(row: str) -> bytes:
    return bytes.fromhex(row[: 2 * _BYTES])
