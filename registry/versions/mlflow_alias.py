"""One alias in MLflow, read and written by whoever holds its lease.

MLflow keeps no history, actor or condition for an alias. So the ledger notes every write before it is sent (table
`attempt`), and MLflow gets the promotion's seq beside the alias. A write may arrive late: its process was suspended, or
was killed while the request was under way. The note distinguishes such a write from a person's edit.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ptpipeline.errors import ArtifactError, NotFound, Terminal
from ptpipeline.records.base import Record
from ptpipeline.records.versions import Promotion, PromptVersion
from registry.card.card import VERDICT_DIGEST_TAG, VERDICT_TAG, alias_tags, describe_outcome
from registry.failpoints import reached
from registry.ledger.lease import Lease
from registry.ledger.projections import end_attempt, is_attempted, note_attempt
from registry.mlflow.store import MlflowStore, Model, Shown
from registry.registry import Registry
from registry.versions.history import find_namings, list_rows
from registry.versions.publish import load_card

log = logging.getLogger(__name__)


class Action(Record):
    """One thing that a projection or a reconcile did, or could not do (then `done` is False and `what` says why)."""

    task: str
    what: str
    done: bool = True


@dataclass(frozen=True)
class Seen:
    """What an alias names in MLflow: the number of a model version, and its digest.

    Both are None if there is no such alias; the digest is empty if the ledger has no such version. `follows`: the last
    write that both the ledger and MLflow know of was for the head. Only then can a difference be an edit; else MLflow
    lags behind, or was restored from a backup.
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
        """Read what the alias names now.

        Raises Terminal if another registry let it name a version of its own: the two would move it for ever.
        """
        head, model = self.head, self.mlflow.model(self.head.task)
        number, applied = model.aliases.get(head.alias), self.registry.ledger.applied("mlflow", head.task, head.alias)
        digest = None if number is None else self._identify(number)
        return Seen(
            number, digest, follows=applied is not None and applied.seq == model.applied.get(head.alias) == head.seq
        )

    def _identify(self, number: str) -> str:
        """Return the digest of the model version, also if somebody altered its tags."""
        task, entry = self.head.task, self.mlflow.version(self.head.task, number)
        known = [version.digest for version in self.registry.ledger.versions(task, limit=None)]
        if entry is None or entry.digest in known:
            return entry.digest if entry else ""
        digest = self.mlflow.digest_of_source(task, entry.source, [*known, entry.digest]) or ""
        if digest and digest not in known:
            raise Terminal(
                f"{task}@{self.head.alias}: in MLflow it names version {number}, which a registry with another ledger "
                "published, so it stays; two registries need an MLflow server each, or tasks of other names; if there "
                f"is no other one any more, delete version {number} of {task} in MLflow and run `ptp reconcile`"
            )
        return digest

    def is_late_write(self, digest: str) -> bool:
        """Whether a write of ours that names this digest may still have been under way."""
        return is_attempted(self.registry.ledger, self.head, digest)

    def follow(self) -> list[Action]:
        """Let the alias show the head, unless what it shows may be a person's edit, which `mlflow_edit` judges."""
        head, seen = self.head, self.look()
        late = bool(seen.follows and seen.digest) and self.is_late_write(str(seen.digest))
        if seen.follows and (seen.digest == head.digest or (seen.digest is not None and not late)):
            return []
        actions = self.write(str(seen.digest) if late else None)
        if seen.digest == head.digest:
            return actions
        why = "it was missing" if seen.number is None else "it lagged behind"
        why = "a late write of ours had moved it" if late else why
        return [*actions, Action(task=head.task, what=f"MLflow alias {head.alias} -> version {head.version}: {why}")]

    def write(self, late: str | None = None) -> list[Action]:
        """Set the alias to the head's version, which is registered again if MLflow lost it; `late` is the digest of a
        late write that this undoes.

        Raises LeaseHeld if another process took over meanwhile: then the note of this write stays.
        """
        head, actions = self.head, []
        number = self.mlflow.find(head.task, head.digest)
        if number is None:
            actions.append(restore(self.registry, self.mlflow, self.registry.ledger.version(head.task, head.version)))
            number = self.mlflow.ensure(load_card(self.registry, head.task, head.digest))
        note = note_attempt(self.registry.ledger, self.lease, head)
        reached("alias attempted")
        self.mlflow.set_alias(head.task, head.alias, number, head.seq)
        reached("alias written")
        end_attempt(self.registry.ledger, self.lease, head, note, late)
        return actions


def describe_versions(registry: Registry, mlflow: MlflowStore, task: str) -> list[Action]:
    """Let the pages of the task's versions tell since when, by whom and why aliases name them, and the newest verdict;
    returns what changed.

    A version whose bytes are damaged keeps its page: the doctor names it.
    """
    known = {version.digest: version for version in registry.ledger.versions(task, limit=None)}
    model = mlflow.models(task).get(task, Model())
    actions = []
    rows = list_rows(registry.ledger, task, registry.ledger.heads(task))
    for entry in find_outdated(rows, model, known):
        version = known[entry.digest]
        try:
            mlflow.describe(load_card(registry, task, entry.digest), version, entry.number)
        except (ArtifactError, NotFound) as error:
            log.warning("%s: MLflow's page of version %s does not follow the ledger: %s", task, entry.version, error)
        else:
            what = f"MLflow's page of version {version.number} follows the ledger again"
            actions.append(Action(task=task, what=what))
    return actions


def find_outdated(rows: Sequence[Promotion], model: Model, known: Mapping[str, PromptVersion]) -> list[Shown]:
    """Return the versions in the task's model, of a known digest, whose tags do not tell what these rows of its history
    (`list_rows`) tell of its aliases, or its newest verdict. What was collected keeps its page.
    """
    return [
        entry
        for entry in model.versions.values()
        if (version := known.get(entry.digest)) and not version.collected
        if entry.aliases != alias_tags(find_namings(rows, entry.digest)) or not _tells_verdict(entry, version)
    ]


def _tells_verdict(entry: Shown, version: PromptVersion) -> bool:
    """Whether the tags tell the version's newest verdict; what is withheld has no tag of its digest."""
    told, digest = entry.verdict.get(VERDICT_TAG), entry.verdict.get(VERDICT_DIGEST_TAG)
    return told == describe_outcome(version.passed) and digest in (None, version.verdict)


def restore(registry: Registry, mlflow: MlflowStore, version: PromptVersion) -> Action:
    """Register a version in MLflow that MLflow lost, or never had."""
    mlflow.describe(load_card(registry, version.task, version.digest), version)
    return Action(task=version.task, what=f"version {version.number} registered in MLflow")
