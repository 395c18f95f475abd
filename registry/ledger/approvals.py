"""Candidates that wait for people, and what people decided: rows that are only added."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from ptpipeline.errors import PromotionRefused
from ptpipeline.records.base import Key, Number, Record, Time, Words
from ptpipeline.records.versions import PRODUCTION, PromptVersion
from registry.ledger import tables
from registry.ledger.clock import read_time
from registry.ledger.database import Database, insert, of_task, seconds_left
from registry.ledger.events import emit

DAY = 24 * 3600.0


class Request(Record):
    """A candidate that waits for people: its version, the verdict that they approve, and who started its run.

    `asked` and `expires` are seconds since 1970 by the clock of the database's machine.
    """

    task: str
    number: Number
    version: Number
    digest: Key
    verdict: Key
    started_by: Words
    asked: float
    expires: float
    at: Time


class Decision(Record):
    """What one person decided, why, and the id of the key that their process signs with."""

    approved: bool
    actor: Words
    key: str | None
    reason: Words
    at: Time


class Standing(NamedTuple):
    """A request, what was decided about it, and how long it lasts: 0 seconds if it has expired."""

    request: Request
    decisions: list[Decision]
    seconds_left: float

    @property
    def rejection(self) -> Decision | None:
        """The decision that rejected the candidate."""
        return next((decision for decision in self.decisions if not decision.approved), None)


class Asked(NamedTuple):
    """What is asked of people: a version, by which verdict, whose run it was, and for how many days."""

    version: PromptVersion
    verdict: str
    started_by: str
    days: float


def find_standing(database: Database, task: str, digest: str) -> Standing | None:
    """Return the newest request for that candidate, and what was decided about it."""
    with database.reading() as connection:
        return _read_standing(database, connection, task, digest)


def list_standings(database: Database, task: str | None = None) -> list[Standing]:
    """Return the newest request of every candidate, newest first."""
    table = tables.approval_request
    query = of_task(select(table.c.task, table.c.digest), table, task).group_by(table.c.task, table.c.digest)
    with database.reading() as connection:
        rows = connection.execute(query.order_by(func.max(table.c.asked).desc()))
        standings = [_read_standing(database, connection, row.task, row.digest) for row in rows.all()]
        return [standing for standing in standings if standing]


def ask(database: Database, asked: Asked) -> Standing:
    """Ask people for a candidate, and tell others so. What was asked already for that verdict, and has not expired, is
    not asked again, nor is a candidate that was rejected: then this returns how that stands.
    """
    version, table = asked.version, tables.approval_request
    with database.writing(_lock(version.task)) as connection:
        known = _read_standing(database, connection, version.task, version.digest)
        if known and (known.rejection or (known.request.verdict == asked.verdict and known.seconds_left)):
            return known
        last = connection.scalar(select(func.max(table.c.number)).where(table.c.task == version.task))
        clock = database.calendar(connection)
        request = Request(
            task=version.task,
            number=(last or 0) + 1,
            version=version.number,
            digest=version.digest,
            verdict=asked.verdict,
            started_by=known.request.started_by if known else asked.started_by,  # whose run made it, whoever asks again
            asked=clock,
            expires=clock + asked.days * DAY,
            at=read_time(connection),
        )
        connection.execute(insert(connection, table).values(**request.model_dump()))
        emit(connection, "approval_wanted", _describe(connection, request))
        return Standing(request, [], request.expires - clock)


def record_decision(
    database: Database, request: Request, decision: Decision, check: Callable[[Standing], None]
) -> Standing:
    """Add the decision to the request, unless `check` raises over how it stands then; two never decide at once.

    Raises PromotionRefused if it approves what was asked for again meanwhile: nobody was shown what is asked now.
    """
    table = tables.approval
    with database.writing(_lock(request.task)) as connection:
        known = _read_standing(database, connection, request.task, request.digest)
        if known is None:
            raise ValueError(f"{request.task}: there is no request {request.number}")
        if decision.approved and known.request.number != request.number:
            name = f"{request.task}@{request.version}"
            raise PromotionRefused(
                f"{name} was asked for again meanwhile; read the new report (`ptp show {name}`), then approve it"
            )
        check(known)
        number = len(known.decisions) + 1
        row = {"task": request.task, "request": known.request.number, "number": number, **decision.model_dump()}
        connection.execute(insert(connection, table).values(**row))
        return known._replace(decisions=[*known.decisions, decision])


def _read_standing(database: Database, connection: Connection, task: str, digest: str) -> Standing | None:
    asked, decided = tables.approval_request, tables.approval
    mine = select(asked).where(asked.c.task == task, asked.c.digest == digest)
    row = connection.execute(mine.order_by(asked.c.number.desc()).limit(1)).first()
    if row is None:
        return None
    request = Request(**row._mapping)
    columns = [decided.c[name] for name in Decision.model_fields]
    rows = select(*columns).where(decided.c.task == task, decided.c.request == request.number)
    decisions = [Decision(**found._mapping) for found in connection.execute(rows.order_by(decided.c.number))]
    clock = database.calendar(connection)
    return Standing(request, decisions, seconds_left(request.expires, clock, request.expires - request.asked))


def _describe(connection: Connection, request: Request) -> dict[str, object]:
    """Return what is told of a request: from which version to which, whose run, and by which verdict."""
    table = tables.promotion
    head = select(table.c.version).where(table.c.task == request.task, table.c.alias == PRODUCTION)
    return {
        "task": request.task,
        "alias": PRODUCTION,
        "actor": request.started_by,
        "from": connection.scalar(head.order_by(table.c.seq.desc()).limit(1)),
        "to": request.version,
        "reason": "it passed its gate and waits for approval",
        "verdict": request.verdict,
        "expires": datetime.fromtimestamp(request.expires, UTC).isoformat(timespec="seconds"),
    }


def _lock(task: str) -> str:
    return f"approval {task}"
