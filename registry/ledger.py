"""The ledger: numbers versions, decides which version an alias names, and remembers which stages need not run again."""

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, Table, and_, delete, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import IntegrityError

from ptpipeline.errors import LeaseHeld, NotFound, PromotionConflict
from ptpipeline.records import Promotion, PromptVersion, Record, Report, Snapshot, TunedPrompt, Verdict, now
from registry import tables
from registry.database import Database


class Intent(Record):
    """A publish that began: its artifact may be in the store, it is no version yet."""

    task: str
    digest: str
    at: str


class Publication(Record):
    """How a version came to be: its training, the git commit, and where its plots lie in the store, name -> key."""

    tuned: TunedPrompt
    commit: str | None
    plots: dict[str, str]


class Move(Record):
    """A promotion that is asked for: which alias of which task to which version, by whom and why."""

    task: str
    alias: str
    version: int
    actor: str
    reason: str
    verdict: str | None = None


class Applied(NamedTuple):
    """How far a projection followed the ledger."""

    seq: int
    version: int


class Lease:
    """The right to write one projection until it expires."""

    def __init__(self, database: Database, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self._database = database
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"

    def renew(self) -> None:
        """Take the lease, or hold it from now on anew; LeaseHeld where another process has it."""
        with self._database.writing() as connection:
            row = connection.execute(select(tables.lease).where(tables.lease.c.name == self.name)).one_or_none()
            if row and row.owner != self._owner and row.expires_at > time.time():
                left = row.expires_at - time.time()
                raise LeaseHeld(f"{self.name} is being written by {row.owner}, for {left:.0f} s more; try again then")
            _put(connection, tables.lease, {"name": self.name}, owner=self._owner, expires_at=time.time() + self.seconds)

    def release(self) -> None:
        """Let others in; silent where another took it after it expired."""
        with self._database.writing() as connection:
            connection.execute(delete(tables.lease).where(tables.lease.c.name == self.name, tables.lease.c.owner == self._owner))


class Ledger:
    """One database. Every method is one transaction; raises ServiceUnavailable where the database does not answer."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self.url = url

    def close(self) -> None:
        """Give the database connections back."""
        self._database.close()

    # ------------------------------------------------------------ versions

    def intend(self, task: str, digest: str) -> None:
        """Note that `digest` is being published, before its first byte is stored."""
        with self._database.writing() as connection:
            connection.execute(insert(tables.intent).values(task=task, digest=digest, at=now()).on_conflict_do_nothing())

    def intents(self, task: str | None = None) -> list[Intent]:
        """Publishes that began and did not end, oldest first."""
        return [Intent(**row._mapping) for row in self._rows(_of(select(tables.intent), tables.intent, task).order_by(tables.intent.c.at))]

    def fulfil(self, task: str, digest: str) -> None:
        """The publish of `digest` is complete."""
        with self._database.writing() as connection:
            connection.execute(delete(tables.intent).where(tables.intent.c.task == task, tables.intent.c.digest == digest))

    def add_version(self, task: str, digest: str) -> PromptVersion:
        """The version of that digest: the one there is, else numbered one above the task's highest."""
        with self._database.writing() as connection:
            if connection.execute(_version().where(tables.version.c.task == task, tables.version.c.digest == digest)).first() is None:
                highest = connection.scalar(select(func.max(tables.version.c.number)).where(tables.version.c.task == task))
                connection.execute(insert(tables.version).values(task=task, number=(highest or 0) + 1, digest=digest, at=now()))
        return self.version_of(task, digest)

    def version(self, task: str, number: int) -> PromptVersion:
        """Version `number` of the task; NotFound names the versions there are."""
        row = self._row(_version().where(tables.version.c.task == task, tables.version.c.number == number))
        if row is None:
            highest = self._value(select(func.max(tables.version.c.number)).where(tables.version.c.task == task))
            raise NotFound(f"{task}: no version {number}; " + (f"there are 1 to {highest}" if highest else "none is registered yet: `ptp run` makes one"))
        return PromptVersion(**row._mapping)

    def version_of(self, task: str, digest: str) -> PromptVersion:
        """The version of that digest; NotFound where it was never registered."""
        row = self._row(_version().where(tables.version.c.task == task, tables.version.c.digest == digest))
        if row is None:
            raise NotFound(f"{task}: prompt {digest[:12]} is no registered version; `ptp run {task}` registers it")
        return PromptVersion(**row._mapping)

    def versions(self, task: str | None = None, limit: int | None = 100, offset: int = 0) -> list[PromptVersion]:
        """Registered versions by task, newest first, one page of them; all with limit None and offset 0."""
        query = _of(_version(), tables.version, task).order_by(tables.version.c.task, tables.version.c.number.desc())
        return [PromptVersion(**row._mapping) for row in self._rows(query.limit(limit).offset(offset or None))]

    def tasks(self) -> list[str]:
        """Tasks with a registered version, by name."""
        return [row.task for row in self._rows(select(tables.version.c.task).distinct().order_by(tables.version.c.task))]

    # ------------------------------------------------------------ promotions

    def head(self, task: str, alias: str) -> Promotion | None:
        """The promotion that decides what the alias names now."""
        with self._database.reading() as connection:
            return _head(connection, task, alias)

    def heads(self, task: str | None = None) -> list[Promotion]:
        """The head of every alias, by task and alias."""
        table = tables.promotion
        newest = _of(select(table.c.task, table.c.alias, func.max(table.c.seq).label("seq")), table, task).group_by(table.c.task, table.c.alias).subquery()
        on = and_(table.c.task == newest.c.task, table.c.alias == newest.c.alias, table.c.seq == newest.c.seq)
        return [Promotion(**row._mapping) for row in self._rows(select(table).join(newest, on).order_by(table.c.task, table.c.alias))]

    def history(self, task: str, alias: str | None = None) -> list[Promotion]:
        """Every promotion of the task (of one alias), oldest first."""
        table = tables.promotion
        query = select(table).where(table.c.task == task)
        query = query.order_by(table.c.at, table.c.seq) if alias is None else query.where(table.c.alias == alias).order_by(table.c.seq)
        return [Promotion(**row._mapping) for row in self._rows(query)]

    def promotion(self, task: str, alias: str, seq: int) -> Promotion | None:
        """One row of the history."""
        table = tables.promotion
        row = self._row(select(table).where(table.c.task == task, table.c.alias == alias, table.c.seq == seq))
        return Promotion(**row._mapping) if row else None

    def append(self, move: Move, expected_head_seq: int) -> Promotion:
        """Move an alias whose head has the sequence number `expected_head_seq`, 0 where it has none.

        Raises PromotionConflict, naming both heads, where somebody moved it first; NotFound where there is no such version.
        """
        digest = self.version(move.task, move.version).digest
        try:
            with self._database.writing() as connection:
                head = _head(connection, move.task, move.alias)
                if (head.seq if head else 0) != expected_head_seq:
                    raise _conflict(move, expected_head_seq, head)
                promotion = Promotion(**move.to_json(), seq=expected_head_seq + 1, digest=digest, previous=head.version if head else None, at=now())
                connection.execute(insert(tables.promotion).values(**promotion.to_json()))
        except IntegrityError:  # a writer that another isolation let in between
            raise _conflict(move, expected_head_seq, self.head(move.task, move.alias)) from None
        return promotion

    # ------------------------------------------------------------ projections

    def applied(self, target: str, task: str, alias: str) -> Applied | None:
        """How far `target` (`store`, `mlflow`) followed the head of the alias."""
        table = tables.projection
        row = self._row(select(table).where(table.c.target == target, table.c.task == task, table.c.alias == alias))
        return Applied(row.applied_seq, row.applied_version) if row else None

    def record_applied(self, target: str, promotion: Promotion) -> None:
        """`target` shows that promotion; an older one than recorded changes nothing."""
        where = {"target": target, "task": promotion.task, "alias": promotion.alias}
        row = {"applied_seq": promotion.seq, "applied_version": promotion.version, "at": now()}
        newer = insert(tables.projection).values(**where, **row)
        newer = newer.on_conflict_do_update(index_elements=list(where), set_=row, where=tables.projection.c.applied_seq < promotion.seq)
        with self._database.writing() as connection:
            connection.execute(newer)

    @contextmanager
    def lease(self, name: str, seconds: float) -> Iterator[Lease]:
        """The only writer called `name` for the block, for at most `seconds` after its last renewal; LeaseHeld where taken."""
        lease = Lease(self._database, name, seconds)
        lease.renew()
        try:
            yield lease
        finally:
            lease.release()

    # ------------------------------------------------------------ what the stages remember

    def snapshot_for(self, task: str, source_key: str) -> Snapshot | None:
        """The snapshot that was made of that source."""
        return self._snapshot(tables.snapshot.c.task == task, tables.snapshot.c.source_key == source_key)

    def snapshot(self, task: str, digest: str) -> Snapshot | None:
        """The snapshot of that digest."""
        return self._snapshot(tables.snapshot.c.task == task, tables.snapshot.c.digest == digest)

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Remember the snapshot under its source key."""
        self._save(tables.snapshot, {"task": snapshot.task, "source_key": snapshot.source_key}, digest=snapshot.digest, record=snapshot.to_json())

    def tuned(self, task: str, training_key: str) -> TunedPrompt | None:
        """The prompt that was trained under that key."""
        record = self._value(select(tables.training.c.record).where(tables.training.c.task == task, tables.training.c.training_key == training_key))
        return TunedPrompt.model_validate(record) if record else None

    def save_tuned(self, *prompts: TunedPrompt) -> None:
        """Remember prompts under their training keys, in place of earlier ones: those of one gang all or none."""
        with self._database.writing() as connection:
            for tuned in prompts:
                key = {"task": tuned.task, "training_key": tuned.training_key}
                _put(connection, tables.training, key, record=tuned.to_json(), at=now())

    def report(self, evaluation_key: str) -> Report | None:
        """The evaluation that was made under that key."""
        return self._report(tables.evaluation.c.evaluation_key == evaluation_key)

    def report_of(self, task: str, digest: str) -> Report | None:
        """The newest evaluation of the prompt of that digest."""
        return self._report(tables.evaluation.c.task == task, tables.evaluation.c.digest == digest)

    def save_report(self, report: Report) -> None:
        """Remember the evaluation under its key."""
        self._save(tables.evaluation, {"evaluation_key": report.evaluation_key}, task=report.task, digest=report.digest, record=report.to_json())

    def verdict_for(self, gate_key: str) -> Verdict | None:
        """The newest verdict under that gate key."""
        return self._verdict(tables.verdict.c.gate_key == gate_key)

    def verdict(self, digest: str) -> Verdict | None:
        """The verdict of that digest, as promotions cite it."""
        return self._verdict(tables.verdict.c.verdict == digest)

    def latest_verdict(self, task: str, digest: str) -> Verdict | None:
        """The newest verdict over the prompt of that digest."""
        return self._verdict(tables.verdict.c.task == task, tables.verdict.c.digest == digest)

    def verdicts(self, task: str, digest: str) -> list[Verdict]:
        """Every verdict over the prompt of that digest, newest first."""
        table = tables.verdict
        query = select(table.c.record).where(table.c.task == task, table.c.digest == digest).order_by(table.c.at.desc())
        return [Verdict.model_validate(row.record) for row in self._rows(query)]

    def save_verdict(self, verdict: Verdict) -> None:
        """Remember the verdict as the newest; saving it again makes it the newest again."""
        values = {"gate_key": verdict.gate_key, "task": verdict.task, "digest": verdict.digest, "passed": verdict.passed}
        self._save(tables.verdict, {"verdict": verdict.verdict_digest()}, **values, record=verdict.to_json())

    def publication(self, task: str, digest: str) -> Publication | None:
        """How the version of that digest came to be."""
        table = tables.publication
        record = self._value(select(table.c.record).where(table.c.task == task, table.c.digest == digest))
        return Publication.model_validate(record) if record else None

    def save_publication(self, publication: Publication) -> None:
        """Remember how the version came to be, in place of what was known before."""
        self._save(tables.publication, {"task": publication.tuned.task, "digest": publication.tuned.digest}, record=publication.to_json())

    # ------------------------------------------------------------ rows

    def _snapshot(self, *where: Any) -> Snapshot | None:
        record = self._value(_newest(tables.snapshot).where(*where))
        return Snapshot.model_validate(record) if record else None

    def _report(self, *where: Any) -> Report | None:
        record = self._value(_newest(tables.evaluation).where(*where))
        return Report.model_validate(record) if record else None

    def _verdict(self, *where: Any) -> Verdict | None:
        record = self._value(_newest(tables.verdict).where(*where))
        return Verdict.model_validate(record) if record else None

    def _save(self, table: Table, key: dict[str, str], **values: Any) -> None:
        with self._database.writing() as connection:
            _put(connection, table, key, **values, at=now())

    def _rows(self, query: Select[Any]) -> list[Row[Any]]:
        with self._database.reading() as connection:
            return list(connection.execute(query))

    def _row(self, query: Select[Any]) -> Row[Any] | None:
        with self._database.reading() as connection:
            return connection.execute(query).first()

    def _value(self, query: Select[Any]) -> Any:
        with self._database.reading() as connection:
            return connection.scalar(query)


def _put(connection: Connection, table: Table, key: dict[str, str], **values: Any) -> None:
    connection.execute(insert(table).values(**key, **values).on_conflict_do_update(index_elements=list(key), set_=values))


def _of(query: Select[Any], table: Table, task: str | None) -> Select[Any]:
    return query if task is None else query.where(table.c.task == task)


def _newest(table: Table) -> Select[Any]:
    return select(table.c.record).order_by(table.c.at.desc()).limit(1)


def _version() -> Select[Any]:
    """Versions with their newest verdict, as the fields of PromptVersion."""
    row, verdict, other = tables.version, tables.verdict, tables.verdict.alias()
    mine = and_(other.c.task == row.c.task, other.c.digest == row.c.digest)
    newest = select(other.c.verdict).where(mine).order_by(other.c.at.desc()).limit(1).correlate(row).scalar_subquery()
    columns = (row.c.task, row.c.number, row.c.digest, verdict.c.verdict, verdict.c.passed, row.c.at.label("registered_at"))
    return select(*columns).select_from(row.outerjoin(verdict, verdict.c.verdict == newest))


def _head(connection: Connection, task: str, alias: str) -> Promotion | None:
    table = tables.promotion
    row = connection.execute(select(table).where(table.c.task == task, table.c.alias == alias).order_by(table.c.seq.desc()).limit(1)).first()
    return Promotion(**row._mapping) if row else None


def _conflict(move: Move, expected: int, head: Promotion | None) -> PromotionConflict:
    actual = f"seq {head.seq}, version {head.version}, moved by {head.actor} at {head.at} ({head.reason})" if head else "no promotion at all"
    asked = f"seq {expected}" if expected else "no promotion yet"
    return PromotionConflict(
        f"{move.task}@{move.alias}: expected {asked} as head for version {move.version} by {move.actor}, found {actual}; look at `ptp history {move.task}`, then promote again"
    )
