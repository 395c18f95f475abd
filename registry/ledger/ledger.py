"""The ledger: numbers versions, decides which version an alias names, and records who moved it, when and why."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import Field
from sqlalchemy import Connection, Select, and_, delete, exists, func, select
from sqlalchemy.exc import IntegrityError

from ptpipeline.errors import NotFound, PromotionConflict
from ptpipeline.records.base import Number, Record, Time, Words, now
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import Beside, Promotion, PromptVersion
from registry.ledger import tables
from registry.ledger.clock import read_time
from registry.ledger.database import insert, of_task, put
from registry.ledger.events import emit_promotion
from registry.ledger.results import Results, put_verdict
from registry.ledger.tombstone import lock_name, refuse_buried, take_over


class Intent(Record):
    """A publish that began: its artifact may be in the store, but it is no version yet."""

    task: str
    digest: str
    at: str


class Move(Record):
    """A requested promotion: which alias of which task moves to which version, by whom and why.

    `expected` is the sequence number of the alias's head as it was read, 0 if it had none. `override` says that a
    person promotes what the gate refused; `release` names the set that is promoted together. `beside` is a second
    version that the alias names too. `at` is when it was requested: so its row is known before, and can be signed.
    """

    task: str
    alias: str
    version: int
    actor: str
    reason: str
    expected: int
    verdict: str | None = None
    override: bool = False
    release: str | None = None
    beside: Beside | None = None
    at: str = Field(default_factory=now)


class Release(Record):
    """Versions of several tasks that are promoted together: task -> version number. A `name` is never used twice."""

    name: str
    actor: Words
    reason: Words
    versions: dict[str, Number]
    at: Time


class Applied(NamedTuple):
    """The promotion, and its version, that a projection shows."""

    seq: int
    version: int


class Ledger(Results):
    """One database. Every method is one transaction and raises ServiceUnavailable if the database does not answer."""

    def intend(self, task: str, digest: str) -> None:
        """Note that `digest` is published from now on, before a byte is stored; LeaseHeld while it is collected."""
        with self.database.writing(lock_name(task, digest)) as connection:
            take_over(self.database, connection, task, digest)
            # with a new time, so that it does not look abandoned
            put(connection, tables.intent, {"task": task, "digest": digest}, at=read_time(connection))

    def intents(self, task: str | None = None) -> list[Intent]:
        """Return the publishes that began and did not end, oldest first."""
        query = of_task(select(tables.intent), tables.intent, task).order_by(tables.intent.c.at)
        return [Intent(**row._mapping) for row in self.database.ask(query)]

    def forget_intents(self, before: str) -> None:
        """Give up publishes that nobody began again since then; what they stored is an orphan from now on."""
        with self.database.writing() as connection:
            connection.execute(delete(tables.intent).where(tables.intent.c.at < before))

    def fulfil(self, task: str, digest: str) -> None:
        """Note that the publish of `digest` is complete."""
        with self.database.writing() as connection:
            connection.execute(
                delete(tables.intent).where(tables.intent.c.task == task, tables.intent.c.digest == digest)
            )

    def add_version(
        self, task: str, digest: str, verdict: Verdict | None = None, judged_at: str | None = None
    ) -> PromptVersion:
        """Return the version of that digest; if there is none, add it with the number above the task's highest.
        `verdict` becomes the newest one on it, since `judged_at`, by default from now on.
        """
        mine = _version().where(tables.version.c.task == task, tables.version.c.digest == digest)
        with self.database.writing(f"version {task}") as connection:
            if connection.execute(mine).first() is None:
                highest = connection.scalar(
                    select(func.max(tables.version.c.number)).where(tables.version.c.task == task)
                )
                connection.execute(
                    insert(connection, tables.version).values(
                        task=task, number=(highest or 0) + 1, digest=digest, at=read_time(connection)
                    )
                )
            if verdict:
                put_verdict(connection, verdict, judged_at)
            return PromptVersion(**connection.execute(mine).one()._mapping)

    def version(self, task: str, number: int) -> PromptVersion:
        """Return version `number` of the task; NotFound names the versions that exist."""
        row = self.database.ask_one(_version().where(tables.version.c.task == task, tables.version.c.number == number))
        if row is None:
            highest = self.database.ask_value(
                select(func.max(tables.version.c.number)).where(tables.version.c.task == task)
            )
            raise NotFound(
                f"{task}: no version {number}; "
                + (f"there are 1 to {highest}" if highest else "none is registered yet: `ptp run` makes one")
            )
        return PromptVersion(**row._mapping)

    def version_of(self, task: str, digest: str) -> PromptVersion:
        """Return the version of that digest; raise NotFound if it was never registered."""
        row = self.database.ask_one(_version().where(tables.version.c.task == task, tables.version.c.digest == digest))
        if row is None:
            raise NotFound(f"{task}: prompt {digest[:12]} is no registered version; `ptp run {task}` registers it")
        return PromptVersion(**row._mapping)

    def versions(self, task: str | None = None, limit: int | None = 100, offset: int = 0) -> list[PromptVersion]:
        """Return a page of the registered versions by task, newest first; all of them with limit None and offset 0."""
        order = tables.version.c.task, tables.version.c.number.desc()
        page = (
            of_task(select(tables.version.c.task, tables.version.c.number), tables.version, task)
            .order_by(*order)
            .limit(limit)
            .offset(offset or None)
            .subquery()
        )
        shown = _version().join(
            page, and_(tables.version.c.task == page.c.task, tables.version.c.number == page.c.number)
        )  # verdicts are looked up for the page alone
        return [PromptVersion(**row._mapping) for row in self.database.ask(shown.order_by(*order))]

    def tasks(self) -> list[str]:
        """Return the tasks with a registered version, by name."""
        task = tables.version.c.task
        return [row.task for row in self.database.ask(select(task).distinct().order_by(task))]

    # ------------------------------------------------------------ promotions

    def head(self, task: str, alias: str) -> Promotion | None:
        """Return the promotion that decides what the alias names now."""
        with self.database.reading() as connection:
            return _head(connection, task, alias)

    def heads(self, task: str | None = None) -> list[Promotion]:
        """Return the head of every alias, by task and alias."""
        table = tables.promotion
        newest = (
            of_task(select(table.c.task, table.c.alias, func.max(table.c.seq).label("seq")), table, task)
            .group_by(table.c.task, table.c.alias)
            .subquery()
        )
        on = and_(table.c.task == newest.c.task, table.c.alias == newest.c.alias, table.c.seq == newest.c.seq)
        query = select(table).join(newest, on).order_by(table.c.task, table.c.alias)
        return [Promotion(**row._mapping) for row in self.database.ask(query)]

    def history(self, task: str, alias: str | None = None) -> list[Promotion]:
        """Return every promotion of the task, or of one alias, oldest first: those of several aliases by time, those of
        one by number, because the clock may have been set back between two of them.
        """
        table = tables.promotion
        newest = func.max(table.c.at).over(partition_by=table.c.alias, order_by=table.c.seq)  # up to that row
        query = select(table).where(table.c.task == task).order_by(newest, table.c.seq)
        if alias is not None:
            query = query.where(table.c.alias == alias)
        return [Promotion(**row._mapping) for row in self.database.ask(query)]

    def promotion(self, task: str, alias: str, seq: int) -> Promotion | None:
        """Return one row of the history."""
        table = tables.promotion
        row = self.database.ask_one(
            select(table).where(table.c.task == task, table.c.alias == alias, table.c.seq == seq)
        )
        return Promotion(**row._mapping) if row else None

    def draft(self, move: Move) -> Promotion:
        """Return the row that `append` would insert; PromotionConflict if somebody moved the alias first."""
        digest = self.version(move.task, move.version).digest
        with self.database.reading() as connection:
            head = _head(connection, move.task, move.alias)
            if (head.seq if head else 0) != move.expected:
                raise _conflict(move, head)
            return _next_row(move, digest, head)

    def append(self, move: Move) -> Promotion:
        """Move an alias from the head that the move expects.

        Raises PromotionConflict, which names both heads, if somebody moved it first; NotFound if there is no such
        version, PromotionRefused if the garbage collection deleted it or is about to.
        """
        return self._append([move], None)[0]

    def append_release(self, release: Release, moves: Sequence[Move]) -> list[Promotion]:
        """Move all those aliases or none, in one transaction that records the release; raises as `append` does.

        Raises PromotionConflict too if a release of that name holds other versions.
        """
        return self._append(moves, release)

    def release(self, name: str) -> Release | None:
        """Return the release of that name."""
        row = self.database.ask_one(select(tables.release).where(tables.release.c.name == name))
        return Release(**row._mapping) if row else None

    def releases(self) -> list[Release]:
        """Return every release, newest first."""
        query = select(tables.release).order_by(tables.release.c.at.desc())
        return [Release(**row._mapping) for row in self.database.ask(query)]

    def _append(self, moves: Sequence[Move], release: Release | None) -> list[Promotion]:
        ordered = sorted(moves, key=lambda move: (move.task, move.alias))  # so that two releases lock rows in one order
        digests = [self.version(move.task, move.version).digest for move in ordered]
        try:
            with self.database.writing() as connection:
                if release:
                    _record_release(connection, release)
                for move, digest in zip(ordered, digests, strict=True):
                    for needed in {digest, move.beside.digest if move.beside else digest}:
                        refuse_buried(self.database, connection, move.task, needed)
                return [_insert_promotion(connection, *each) for each in zip(ordered, digests, strict=True)]
        except IntegrityError:  # somebody else inserted the row first
            for move in ordered:
                head = self.head(move.task, move.alias)
                if (head.seq if head else 0) != move.expected:
                    raise _conflict(move, head) from None
            raise

    # ------------------------------------------------------------ projections

    def applied(self, target: str, task: str, alias: str) -> Applied | None:
        """Return which promotion of the alias `target` (`store`, `mlflow`) shows."""
        table = tables.projection
        row = self.database.ask_one(
            select(table).where(table.c.target == target, table.c.task == task, table.c.alias == alias)
        )
        return Applied(row.applied_seq, row.applied_version) if row else None

    def record_applied(self, target: str, promotion: Promotion) -> None:
        """Record that `target` shows that promotion; one that is older than the recorded one changes nothing."""
        where = {"target": target, "task": promotion.task, "alias": promotion.alias}
        older = tables.projection.c.applied_seq < promotion.seq
        with self.database.writing() as connection:
            at = read_time(connection)
            row = {"applied_seq": promotion.seq, "applied_version": promotion.version, "at": at}
            connection.execute(
                insert(connection, tables.projection)
                .values(**where, **row)
                .on_conflict_do_update(index_elements=list(where), set_=row, where=older)
            )


def _version() -> Select[Any]:
    """Versions with their newest verdict, as the fields of PromptVersion."""
    row, verdict, other = tables.version, tables.verdict, tables.verdict.alias()
    mine = and_(other.c.task == row.c.task, other.c.digest == row.c.digest)
    newest = select(other.c.verdict).where(mine).order_by(other.c.at.desc()).limit(1).correlate(row).scalar_subquery()
    collected = (
        exists()
        .where(tables.tombstone.c.task == row.c.task, tables.tombstone.c.digest == row.c.digest)
        .label("collected")
    )
    columns = (
        row.c.task,
        row.c.number,
        row.c.digest,
        verdict.c.verdict,
        verdict.c.passed,
        row.c.at.label("registered_at"),
        collected,
    )
    return select(*columns).select_from(row.outerjoin(verdict, verdict.c.verdict == newest))


def _head(connection: Connection, task: str, alias: str) -> Promotion | None:
    table = tables.promotion
    row = connection.execute(
        select(table).where(table.c.task == task, table.c.alias == alias).order_by(table.c.seq.desc()).limit(1)
    ).first()
    return Promotion(**row._mapping) if row else None


def _insert_promotion(connection: Connection, move: Move, digest: str) -> Promotion:
    """Insert the move as the row behind the head that it expects; the table's key refuses it if that row exists."""
    table = tables.promotion
    row = connection.execute(
        select(table).where(table.c.task == move.task, table.c.alias == move.alias, table.c.seq == move.expected)
    ).first()
    if row is None and move.expected > 0:
        raise _conflict(move, _head(connection, move.task, move.alias))
    promotion = _next_row(move, digest, Promotion(**row._mapping) if row else None)
    connection.execute(insert(connection, table).values(**tables.promotion_columns(promotion)))
    emit_promotion(connection, promotion)
    return promotion


def _next_row(move: Move, digest: str, before: Promotion | None) -> Promotion:
    """Return the row that the move becomes behind that one; rows never change, so neither does this one's chain."""
    return Promotion(
        **move.model_dump(exclude={"expected"}),
        seq=move.expected + 1,
        digest=digest,
        previous=before.version if before else None,
        chain=before.row_digest() if before else None,
    )


def _record_release(connection: Connection, release: Release) -> None:
    connection.execute(insert(connection, tables.release).values(**release.model_dump()).on_conflict_do_nothing())
    stored = connection.scalar(select(tables.release.c.versions).where(tables.release.c.name == release.name))
    if stored is not None and stored != release.versions:
        raise release_conflict(release.model_copy(update={"versions": stored}))


def release_conflict(release: Release) -> PromotionConflict:
    """Return the error for a request that would change that release."""
    versions = ", ".join(f"{task}@{number}" for task, number in sorted(release.versions.items()))
    return PromotionConflict(
        f"release {release.name!r} holds {versions} already and never changes; give the new set another name"
    )


def _conflict(move: Move, head: Promotion | None) -> PromotionConflict:
    actual = (
        f"seq {head.seq}, version {head.version}, moved by {head.actor} at {head.at} ({head.reason})"
        if head
        else "no promotion at all"
    )
    expected = f"seq {move.expected}" if move.expected else "no promotion yet"
    return PromotionConflict(
        f"{move.task}@{move.alias}: expected {expected} as head for version {move.version} by {move.actor}, found "
        f"{actual}; look at `ptp history {move.task}`, then promote again"
    )
