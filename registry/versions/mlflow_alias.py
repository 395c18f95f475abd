"""One alias in MLflow, looked at and written by whoever holds its lease.

MLflow keeps no history, actor or condition for an alias. So the ledger notes every write before it is sent (table
`attempt`), and MLflow gets the promotion's seq beside the alias. A write that comes late, from a process that stood
still or from a request that was under way when its process was killed, is told from a person's edit by its note.
"""

import logging
import uuid
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, select

from ptpipeline.records import Promotion, PromptVersion, Record, now
from registry.failpoints import reached
from registry.ledger import tables
from registry.ledger.database import insert
from registry.ledger.lease import Lease
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.versions.publish import entry_of

log = logging.getLogger(__name__)


class Action(Record):
    """One thing that a projection or a reconcile did, or could not do (then `done` is False and `what` says why)."""

    task: str
    what: str
    done: bool = True


@dataclass(frozen=True)
class Seen:
    """What an alias names in MLflow: a number and the digest there, None where there is no alias, empty where the
    version is not ours.

    `follows`: the last write that both the ledger and MLflow know of was for the head. Only then can a difference be an
    edit; else MLflow lags behind, or was restored from a backup.
    """

    number: str | None
    digest: str | None
    follows: bool


@dataclass(frozen=True)
class HeldAlias:
    """An alias whose lease we hold, and the promotion that it is to show."""

    registry: Registry
    mlflow: MlflowStore
    head: Promotion
    lease: Lease

    def look(self) -> Seen:
        """What the alias names now."""
        head, model = self.head, self.mlflow.model(self.head.task)
        number, applied = model.aliases.get(head.alias), self.registry.ledger.applied("mlflow", head.task, head.alias)
        digest = None if number is None else self.mlflow.digest(head.task, number)
        return Seen(
            number, digest, follows=applied is not None and applied.seq == model.applied.get(head.alias) == head.seq
        )

    def is_late_write(self, digest: str) -> bool:
        """Whether a write of ours that names this digest may still have been under way."""
        with self.registry.ledger.database.reading() as connection:
            return (
                connection.execute(select(tables.attempt.c.owner).where(*self._attempts(digest)).limit(1)).first()
                is not None
            )

    def follow(self) -> list[Action]:
        """Let the alias show the head, unless what it shows may be a person's edit, which the door judges."""
        head, seen = self.head, self.look()
        late = bool(seen.follows and seen.digest) and self.is_late_write(str(seen.digest))
        if seen.follows and (seen.digest == head.digest or (seen.digest is not None and not late)):
            return []
        actions = self.write(str(seen.digest) if late else None)
        if seen.digest == head.digest:
            return actions
        was = (
            "a late write of ours had moved it"
            if late
            else "it was missing"
            if seen.number is None
            else "it lagged behind"
        )
        return [*actions, Action(task=head.task, what=f"MLflow alias {head.alias} -> version {head.version}: {was}")]

    def write(self, late: str | None = None) -> list[Action]:
        """Set the alias to the head's version, registered anew where MLflow lost it; `late` is the digest of a late
        write that this undoes.

        Raises LeaseHeld where another process took over meanwhile: then the note of this write stays.
        """
        head, actions = self.head, []
        number = self.mlflow.find(head.task, head.digest)
        if number is None:
            actions.append(restore(self.registry, self.mlflow, self.registry.ledger.version(head.task, head.version)))
            number = self.mlflow.ensure(entry_of(self.registry, head.task, head.digest))
        owner = self._note()
        reached("alias attempted")
        self.mlflow.set_alias(head.task, head.alias, number, head.seq)
        reached("alias written")
        self._landed(owner, late)
        return actions

    def _note(self) -> str:
        """Note a write of the head's digest, by the holder of the lease alone; returns the note's name."""
        head, owner = self.head, uuid.uuid4().hex
        with self.registry.ledger.database.writing() as connection:
            self.lease.keep(connection)
            connection.execute(
                insert(connection, tables.attempt).values(
                    task=head.task, alias=head.alias, digest=head.digest, owner=owner, at=now()
                )
            )
        return owner

    def _landed(self, owner: str, late: str | None) -> None:
        """Forget our note, since nobody else can have written meanwhile, one note of the late write that was seen, and
        sightings.
        """
        with self.registry.ledger.database.writing() as connection:
            self.lease.keep(connection)
            connection.execute(delete(tables.attempt).where(tables.attempt.c.owner == owner))
            if late is not None:
                oldest = (
                    select(tables.attempt.c.owner)
                    .where(*self._attempts(late))
                    .order_by(tables.attempt.c.at)
                    .limit(1)
                    .scalar_subquery()
                )
                connection.execute(delete(tables.attempt).where(tables.attempt.c.owner == oldest))
            forget_sighting(connection, self.head.task, self.head.alias)

    def _attempts(self, digest: str) -> tuple[ColumnElement[bool], ...]:
        table = tables.attempt
        return table.c.task == self.head.task, table.c.alias == self.head.alias, table.c.digest == digest


def forget_sighting(connection: Connection, task: str, alias: str) -> None:
    """The alias differs no more: another edit is seen for the first time."""
    connection.execute(delete(tables.sighting).where(tables.sighting.c.task == task, tables.sighting.c.alias == alias))


def restore(registry: Registry, mlflow: MlflowStore, version: PromptVersion) -> Action:
    """Register a version in MLflow that MLflow lost, or never had."""
    mlflow.describe(entry_of(registry, version.task, version.digest), version)
    return Action(task=version.task, what=f"version {version.number} registered in MLflow")
