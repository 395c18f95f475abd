"""Compares the ledger with what follows it: names, pointers, history and dossiers in the store, bytes, MLflow; changes
nothing.

Each task's objects are listed once and read once. What differs is looked at a second time, because a publish or a
promotion that runs meanwhile is between its steps for a moment.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal, NamedTuple

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records import Promotion, PromptManifest, Record
from ptpipeline.storage.addresses import is_dossier
from ptpipeline.storage.keys import RELEASES, history_key, pointer_key, prompt_prefix, release_key, version_key
from registry.ledger.holdings import Holdings, holdings
from registry.ledger.lease import expired_leases
from registry.listing import TaskListing, ask_all, list_task, list_tasks
from registry.mlflow.copy import copy_of
from registry.mlflow.store import MlflowStore, Model
from registry.registry import Registry
from registry.repair.inventory import Missing, Survey, missing, survey, unsound

Kind = Literal[
    "bytes",
    "name",
    "pointer",
    "history",
    "ledger",
    "foreign",
    "dossier",
    "orphan",
    "publish",
    "release",
    "lease",
    "model",
    "alias",
    "edit",
]

RECONCILE, FIX, REBUILD = "ptp reconcile", "ptp doctor --fix", "ptp doctor --rebuild-ledger"


class Difference(Record):
    """One disagreement with the ledger, and the command that mends it.

    `safe` differences are mended by `ptp doctor --fix`; the others need a person, who reads `mend`.
    """

    task: str
    kind: Kind
    what: str
    expected: str
    found: str
    mend: str
    safe: bool


class Look(NamedTuple):
    """One task as the ledger, the store and its artifacts show it."""

    registry: Registry
    shelf: TaskListing
    books: Holdings
    found: Survey
    lacking: Missing
    artifacts: dict[str, PromptManifest | str]

    @property
    def task(self) -> str:
        """The task's name."""
        return self.shelf.task

    def kept(self) -> dict[int, str]:
        """Versions that nobody is collecting: number -> digest."""
        return {
            number: digest
            for number, digest in sorted(self.books.versions.items())
            if digest not in self.books.tombstones
        }


def examine(registry: Registry, task: str | None = None) -> list[Difference]:
    """Every difference between the ledger and what follows it, of one task or all; empty where all agrees.

    Raises ServiceUnavailable where the ledger, the store or MLflow does not answer.
    """
    found: list[Difference] = []
    versions: dict[str, dict[int, str]] = {}
    for shelf in _all_shelves(registry) if task is None else [_shelf(registry, task)]:
        look = look_at(registry, shelf)
        versions[shelf.task] = look.kept()
        found += _confirmed(look)
    if registry.mlflow:
        models = registry.mlflow.models(task)
        for name, registered in versions.items():
            found += _shown(registry, registry.mlflow, (name, registered), models.get(name, Model()))
    return [*found, *_leases(registry, task), *(_releases(registry) if task is None else [])]


def look_at(registry: Registry, shelf: TaskListing) -> Look:
    """Read what one task consists of: the ledger first, since what it knows is in the store already."""
    books = holdings(registry.ledger, shelf.task)
    found = survey(registry.store, shelf)
    lacking = missing(shelf.task, found, books, unsound(registry.store, shelf.task, found, books))
    return Look(
        registry,
        shelf,
        books,
        found,
        lacking,
        _artifacts(registry, shelf.task, {*books.versions.values()} - books.tombstones),
    )


def _shelf(registry: Registry, task: str) -> TaskListing:
    shelf = list_task(registry.store, task)
    if not shelf.objects and task not in {
        *registry.ledger.tasks(),
        *(intent.task for intent in registry.ledger.intents()),
    }:
        raise NotFound(
            f"neither the ledger nor {registry.store.url} knows a task {task!r}; `ptp versions` lists what is "
            "registered"
        )
    return shelf


def _all_shelves(registry: Registry) -> Iterator[TaskListing]:
    named = {*registry.ledger.tasks(), *(intent.task for intent in registry.ledger.intents())}
    for shelf in list_tasks(registry.store):
        named.discard(shelf.task)
        yield shelf
    for task in sorted(named):
        yield list_task(registry.store, task)


def _confirmed(look: Look) -> list[Difference]:
    first = [*_differences(look)]
    if not first:
        return []
    again = {*_differences(look_at(look.registry, list_task(look.registry.store, look.task)))}
    return [difference for difference in first if difference in again]


def _differences(look: Look) -> Iterator[Difference]:
    for part in (_bytes, _names, _ledger, _history, _pointers, _dossiers, _orphans):
        yield from part(look)


# ---------------------------------------------------------------- bytes and names


def _artifacts(registry: Registry, task: str, digests: set[str]) -> dict[str, PromptManifest | str]:
    """The manifests of those prompts and of the members of ensembles, each artifact read and verified once; or
    why not.
    """
    found = ask_all(partial(_manifest, registry, task), digests)
    members = {
        digest
        for manifest in found.values()
        if isinstance(manifest, PromptManifest) and manifest.members
        for digest in manifest.members.digests
    }
    return found | ask_all(partial(_manifest, registry, task), members - found.keys())


def _manifest(registry: Registry, task: str, digest: str) -> PromptManifest | str:
    try:
        return read_artifact(registry.store, task, digest).manifest
    except (ArtifactError, NotFound) as error:
        return str(error)


def _bytes(look: Look) -> Iterator[Difference]:
    for number, digest in look.kept().items():
        own = look.artifacts[digest]
        consists_of = [digest, *(own.members.digests if isinstance(own, PromptManifest) and own.members else [])]
        for part in consists_of:
            problem = look.artifacts[part]
            if isinstance(problem, str):
                copied = (
                    part == digest
                    and look.registry.mlflow is not None
                    and copy_of(look.registry.mlflow, look.task, digest) is not None
                )
                left = (
                    "what is left of manifest.json and prompt.safetensors in "
                    f"{prompt_prefix(look.task, part)}"
                    f"{'' if part == digest else f', and the manifest of {digest[:12]},'}"
                )
                mend = FIX if copied else f"restore them from a backup, or delete {left} and {again(look.task)}"
                yield Difference(
                    task=look.task,
                    kind="bytes",
                    what=f"bytes of version {number}",
                    expected=f"digest {part[:12]}",
                    found=problem,
                    mend=mend,
                    safe=copied,
                )


def _names(look: Look) -> Iterator[Difference]:
    for number, digest in look.kept().items():
        named = look.found.names.get(number, "nothing")
        if named != digest:
            yield _difference(
                look,
                "name",
                f"number {number} in the store",
                (f"digest {digest[:12]}", named[:12]),
                f"{RECONCILE} {look.task}",
            )


# ---------------------------------------------------------------- history and pointers


def _ledger(look: Look) -> Iterator[Difference]:
    """What the store proves and the ledger lost, and what contradicts it."""
    lacking = look.lacking
    for number, digest in lacking.versions.items():
        yield _difference(
            look,
            "ledger",
            f"version {number} in the ledger",
            (f"digest {digest[:12]}, as the store names it", "no such version"),
            REBUILD,
            safe=False,
        )
    for row in lacking.promotions:
        yield _difference(
            look,
            "ledger",
            f"promotion {row.seq} of {row.alias} in the ledger",
            (f"version {row.version}, as the store holds it", "no such promotion"),
            REBUILD,
            safe=False,
        )
    told = {version_key(look.task, number) for number in look.kept()}
    rows = {history_key(look.task, row.alias, row.seq) for history in look.books.history.values() for row in history}
    for refused in [*(refused for refused in look.found.refused if refused.key not in rows), *lacking.refused]:
        if refused.key in told or is_dossier(refused.key):  # told as a name, as a dossier
            continue
        mend = f"compare it with a backup of the ledger; where nobody did that, delete the object {refused.key}"
        yield _difference(
            look, "foreign", f"object {refused.key}", ("what the ledger holds", refused.why), mend, safe=False
        )


def _history(look: Look) -> Iterator[Difference]:
    """Rows of the ledger that the store does not hold."""
    held = {
        key for rows in look.found.rows.values() for row in rows for key in [history_key(look.task, row.alias, row.seq)]
    }
    for alias, rows in sorted(look.books.history.items()):
        lost = [row.seq for row in rows if history_key(look.task, alias, row.seq) not in held]
        if lost:
            yield _difference(
                look,
                "history",
                f"history of {alias}",
                (f"{len(rows)} promotions in the store", f"{_numbers(lost)} missing or unreadable"),
                FIX,
            )


def _pointers(look: Look) -> Iterator[Difference]:
    for alias in sorted({*look.books.history, *look.found.pointers}):
        head = look.books.history[alias][-1] if alias in look.books.history else None
        pointer = look.found.pointers.get(alias)
        if (head is not None and pointer == head) or is_ahead(look, alias, head, pointer):
            continue
        stored = pointer_key(look.task, alias) in look.shelf.objects
        found = (
            "no object"
            if not stored
            else "no readable pointer"
            if pointer is None
            else f"version {pointer.version} (seq {pointer.seq})"
        )
        # a ledger that knows nothing of the task may itself be what is lost: then the pointer is all that serves
        safe = head is not None or bool(look.books.versions)
        mend = (
            RECONCILE
            if head
            else FIX
            if safe
            else f"{REBUILD}; where nobody promoted it, delete the object {pointer_key(look.task, alias)}"
        )
        yield _difference(look, "pointer", f"pointer {alias}", (_named(head), found), mend, safe)


def is_ahead(look: Look, alias: str, head: Promotion | None, pointer: Promotion | None) -> bool:
    """Whether the store's history holds that promotion, of which the ledger does not know yet: told as that."""
    return pointer is not None and pointer.seq > (head.seq if head else 0) and pointer in look.found.rows.get(alias, [])


# ---------------------------------------------------------------- dossiers and orphans


def _dossiers(look: Look) -> Iterator[Difference]:
    """How each version was made and judged, as the store keeps it for a lost ledger."""
    told = {dossier.publication.tuned.digest for dossier in look.found.dossiers.values()}
    verdicts = {dossier.verdict.verdict_digest() for dossier in look.found.dossiers.values() if dossier.verdict}
    for number, digest in look.kept().items():
        lost = [
            verdict for verdict, judged in look.books.verdicts.items() if judged == digest and verdict not in verdicts
        ]
        if digest in told and not lost:
            continue
        expected = (
            "how it was made and judged",
            f"{len(lost)} verdicts are not in the store" if digest in told else "nothing in the store",
        )
        safe = digest in look.books.published
        yield _difference(
            look,
            "dossier",
            f"records of version {number}",
            expected if safe else (expected[0], "nothing in the store or the ledger"),
            FIX if safe else f"{again(look.task)}; `ptp gc --apply` gives up what nobody began again for a day",
            safe,
        )
    for refused in look.found.refused:
        if is_dossier(refused.key):
            yield _difference(
                look, "dossier", f"object {refused.key}", ("how a prompt was made and judged", refused.why), FIX
            )


def _orphans(look: Look) -> Iterator[Difference]:
    """Stored prompts that are no version, and publishes that did not end."""
    told = {dossier.publication.tuned.digest for dossier in look.found.dossiers.values()}
    for digest, at in sorted(look.books.intents.items()):
        safe = digest in told  # all that the publish was asked to do is known
        yield _difference(
            look,
            "publish",
            f"publish of {digest[:12]}",
            ("finished", f"interrupted, or under way since {at}"),
            FIX if safe else f"{again(look.task)}; `ptp gc --apply` gives up what nobody began again for a day",
            safe,
        )
    known = {
        *look.books.versions.values(),
        *look.books.intents,
        *look.books.tombstones,
        *look.lacking.versions.values(),
    }
    manifests = [manifest for manifest in look.artifacts.values() if isinstance(manifest, PromptManifest)]
    parts = {
        digest
        for manifest in manifests
        for digest in (*manifest.parents, *(manifest.members.digests if manifest.members else ()))
    }
    for digest in sorted(look.shelf.digests() - known - parts):
        yield _difference(
            look,
            "orphan",
            f"stored prompt {digest[:12]}",
            ("a registered version", "no row in the ledger"),
            f"{again(look.task)}; or `ptp gc --apply` deletes it",
            safe=False,
        )


# ---------------------------------------------------------------- MLflow, leases, releases


def _shown(registry: Registry, mlflow: MlflowStore, task: tuple[str, dict[int, str]], model: Model) -> list[Difference]:
    first = [*_model(registry, task, model)]
    if not first:
        return []
    again = {*_model(registry, task, mlflow.models(task[0]).get(task[0], Model()))}
    return [difference for difference in first if difference in again]


def _model(registry: Registry, task: tuple[str, dict[int, str]], model: Model) -> Iterator[Difference]:
    name, registered = task
    shown = {found.digest for found in model.versions.values()}
    for version, digest in registered.items():
        if digest not in shown:
            yield Difference(
                task=name,
                kind="model",
                what=f"MLflow version of version {version}",
                expected=f"tag ptp.digest {digest[:12]}",
                found="none",
                mend=RECONCILE,
                safe=True,
            )
    heads = {head.alias: head for head in registry.ledger.heads(name)}
    for alias in sorted({*heads, *model.aliases}):
        number = model.aliases.get(alias, "")
        digest = model.versions[number].digest if number in model.versions else ""
        head, found = (
            heads.get(alias),
            f"MLflow version {number} ({digest[:12] or 'no ptp.digest'})" if number else "no alias",
        )
        if head is None:
            yield _strange_alias(
                name, alias, found, next((ours for ours, known in registered.items() if known == digest), None)
            )
        elif digest != head.digest:
            edited = bool(number) and _followed(registry, head, model)
            kind: Kind = "edit" if edited else "alias"
            yield Difference(
                task=name,
                kind=kind,
                what=f"MLflow alias {alias}",
                expected=_named(head),
                found=found,
                mend=RECONCILE,
                safe=not edited,
            )


def _followed(registry: Registry, head: Promotion, model: Model) -> bool:
    """Whether MLflow showed the head before: then what differs is somebody's edit, which the reconcile judges."""
    applied = registry.ledger.applied("mlflow", head.task, head.alias)
    return applied is not None and applied.seq == model.applied.get(head.alias) == head.seq


def _strange_alias(task: str, alias: str, found: str, ours: int | None) -> Difference:
    mend = (
        f"ptp promote {task}@{ours} --alias {alias} --reason ..."
        if ours
        else f"if the ledger was lost, ptp doctor --rebuild-ledger; else delete the alias {alias} of {task} in MLflow"
    )
    return Difference(
        task=task, kind="alias", what=f"MLflow alias {alias}", expected=_named(None), found=found, mend=mend, safe=False
    )


def _leases(registry: Registry, task: str | None) -> Iterator[Difference]:
    """Leases that ended and that nobody gave back: their holder was killed."""
    for lease in expired_leases(registry.ledger.database):
        about = lease.name.split(" ")[-1].split("@")[0]
        if task in (None, about):
            yield Difference(
                task=about,
                kind="lease",
                what=f"lease {lease.name!r}",
                expected="given back",
                found=f"left behind by {lease.owner}",
                mend=FIX,
                safe=True,
            )


def _releases(registry: Registry) -> Iterator[Difference]:
    """Releases that the store does not hold, and releases or promotions that lead nowhere."""
    stored = {item.key for item in registry.store.listed(RELEASES)}
    known = {release.name: release for release in registry.ledger.releases()}
    for name in sorted(known):
        if release_key(name) not in stored:
            yield Difference(
                task="releases",
                kind="release",
                what=f"release {name}",
                expected="an object in the store",
                found="none",
                mend=FIX,
                safe=True,
            )
    for key in sorted(stored - {release_key(name) for name in known}):
        yield Difference(
            task="releases",
            kind="ledger",
            what=f"object {key}",
            expected="a release of the ledger",
            found="no such release",
            mend=REBUILD,
            safe=False,
        )


def again(task: str) -> str:
    """How what was interrupted is finished: by the verb that began it."""
    return f"`ptp run {task}`; of a shared prompt `ptp run` a task that starts from it, of an import `ptp import` again"


def _difference(look: Look, kind: Kind, what: str, states: tuple[str, str], mend: str, safe: bool = True) -> Difference:
    return Difference(task=look.task, kind=kind, what=what, expected=states[0], found=states[1], mend=mend, safe=safe)


def _named(head: Promotion | None) -> str:
    return f"version {head.version} (seq {head.seq})" if head else "no such alias in the ledger"


def _numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
