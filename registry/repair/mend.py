"""Mends what doctor found and what needs no person: whatever the ledger, or a verified copy, says for certain.

Nothing is thrown away: what is replaced in the store is kept under `prompts/<task>/quarantine/`.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from ptpipeline.errors import NotFound
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.addresses import is_dossier
from ptpipeline.storage.keys import history_key, manifest_key, pointer_key, quarantine_key, release_key, tensors_key
from ptpipeline.task.task import Task
from registry.card.card import Provenance
from registry.ledger.lease import leased, remove_expired_leases
from registry.ledger.ledger import Release
from registry.listing import list_task
from registry.mlflow.copy import copy_of
from registry.registry import Registry
from registry.repair.doctor import Difference, Kind, Look, is_ahead, look_at
from registry.repair.reconcile import reconcile
from registry.versions import projection
from registry.versions.mlflow_alias import Action
from registry.versions.projection import attempt, lease_name, write_history
from registry.versions.provenance import Dossier, write_dossier, write_release
from registry.versions.publish import register

log = logging.getLogger(__name__)

BY_RECONCILE: tuple[Kind, ...] = ("name", "pointer", "model", "alias")


def fix(registry: Registry, tasks: Mapping[str, Task], differences: Iterable[Difference]) -> list[Action]:
    """Mend those differences that are safe; what could not be done now is an Action not done. Repeating it changes
    nothing.

    `tasks` are the declared tasks by name, as `reconcile` asks for them. Raises ServiceUnavailable where the ledger
    does not answer.
    """
    safe = [difference for difference in differences if difference.safe]
    wanted = {
        kind: {difference.task for difference in safe if difference.kind == kind}
        for kind in {difference.kind for difference in safe}
    }
    actions = _give_back(registry) if "lease" in wanted else []
    actions += _releases(registry) if "release" in wanted else []
    for task in sorted({difference.task for difference in safe if difference.kind not in ("lease", "release")}):
        actions += _task(registry, tasks, task, {kind for kind, names in wanted.items() if task in names})
    return actions


def _task(registry: Registry, tasks: Mapping[str, Task], task: str, kinds: set[Kind]) -> list[Action]:
    steps: dict[Kind, Callable[[Look], list[Action]]] = {
        "bytes": _bytes,
        "history": _history,
        "dossier": _dossiers,
        "pointer": _pointers,
        "publish": _publishes,
    }
    actions: list[Action] = []
    chosen = [step for kind, step in steps.items() if kind in kinds]
    if chosen:
        look = look_at(registry, list_task(registry.store, task))
        for step in chosen:
            actions += attempt(task, partial(step, look))
    if kinds.intersection(BY_RECONCILE):
        actions += reconcile(registry, tasks, task)
    return actions


def _bytes(look: Look) -> list[Action]:
    """Damaged prompts, from the copy that MLflow keeps."""
    store, ledger, actions = look.registry.store, look.registry.ledger, []
    for number, digest in look.kept().items():
        copy = (
            copy_of(look.registry.mlflow, look.task, digest)
            if look.registry.mlflow and isinstance(look.artifacts[digest], str)
            else None
        )
        if copy is None:
            continue
        ledger.intend(look.task, digest)  # keeps the garbage collection away until all is there
        _restore(store, tensors_key(look.task, digest), copy.tensors)
        _restore(
            store,
            manifest_key(look.task, digest),
            json.dumps(copy.manifest.to_json(), indent=1, sort_keys=True).encode(),
        )
        ledger.fulfil(look.task, digest)
        actions.append(Action(task=look.task, what=f"bytes of version {number} restored from MLflow's copy"))
    return actions


def _restore(store: ObjectStore, key: str, body: bytes) -> None:
    try:
        stored = store.read(key)
    except NotFound:
        store.create(key, body)
        return
    if stored.body != body:
        _keep(store, key, stored.body)
        store.replace(key, body, stored.etag)


def _history(look: Look) -> list[Action]:
    actions = []
    for alias, rows in look.books.history.items():
        keys = {history_key(look.task, alias, row.seq) for row in rows}
        aside = [_set_aside(look, refused.key) for refused in look.found.refused if refused.key in keys]
        held = {row.seq for row in look.found.rows.get(alias, [])}
        lost = [row for row in rows if row.seq not in held]
        if lost:
            write_history(look.registry, lost)
            actions += [*aside, Action(task=look.task, what=f"{len(lost)} promotions of {alias} written to the store")]
    return actions


def _dossiers(look: Look) -> list[Action]:
    """One dossier per verdict that the store does not hold; what is unreadable is set aside."""
    actions = [_set_aside(look, refused.key) for refused in look.found.refused if is_dossier(refused.key)]
    held = {dossier.publication.tuned.digest for dossier in look.found.dossiers.values()}
    judged = {dossier.verdict.verdict_digest() for dossier in look.found.dossiers.values() if dossier.verdict}
    ledger = look.registry.ledger
    for number, digest in look.kept().items():
        publication = ledger.publication(look.task, digest)
        lost = [
            verdict
            for verdict in reversed(ledger.verdicts(look.task, digest))
            if verdict.verdict_digest() not in judged
        ]
        if publication is None or (digest in held and not lost):
            continue
        records = [
            Dossier(publication=publication, report=ledger.report(verdict.evaluation_key), verdict=verdict)
            for verdict in lost
        ]
        for dossier in records or [
            Dossier(publication=publication, report=ledger.report_of(look.task, digest), verdict=None)
        ]:
            write_dossier(look.registry.store, dossier)
        actions.append(Action(task=look.task, what=f"records of version {number} written to the store"))
    return actions


def _pointers(look: Look) -> list[Action]:
    """Pointers of aliases that nobody promoted; those of the others are the reconcile's, and what the ledger lost the
    rebuild's.
    """
    actions, registry = [], look.registry
    strange = {alias: pointer for alias, pointer in look.found.pointers.items() if alias not in look.books.history}
    for alias in sorted(alias for alias, pointer in strange.items() if not is_ahead(look, alias, None, pointer)):
        with leased(registry.ledger.database, lease_name(look.task, alias), projection.LEASE_SECONDS):
            if look.books.versions and registry.ledger.head(look.task, alias) is None:  # nobody promoted it meanwhile
                actions.append(_set_aside(look, pointer_key(look.task, alias)))
    return actions


def _publishes(look: Look) -> list[Action]:
    """Interrupted publishes whose dossier says all that they were asked to do."""
    newest = {dossier.publication.tuned.digest: dossier for dossier in look.found.dossiers.values()}
    actions = []
    for digest in sorted(look.books.intents.keys() & newest.keys()):
        actions += attempt(look.task, partial(_finish, look.registry, newest[digest].provenance))
    return actions


def _finish(registry: Registry, provenance: Provenance) -> list[Action]:
    version = register(registry, provenance)
    return [Action(task=version.task, what=f"publish of {version.digest[:12]} finished: version {version.number}")]


def _give_back(registry: Registry) -> list[Action]:
    count = remove_expired_leases(registry.ledger.database)
    return [Action(task="leases", what=f"{count} given back for holders that are gone")]


def _releases(registry: Registry) -> list[Action]:
    return [
        action
        for release in registry.ledger.releases()
        for action in attempt("releases", partial(_release, registry, release))
    ]


def _release(registry: Registry, release: Release) -> list[Action]:
    if registry.store.exists(release_key(release.name)):
        return []
    write_release(registry.store, release)
    return [Action(task="releases", what=f"release {release.name} written to the store")]


# ---------------------------------------------------------------- quarantine


def _set_aside(look: Look, key: str) -> Action:
    """Move an object that is not what its place says out of the way."""
    store = look.registry.store
    try:
        kept = _keep(store, key, store.read(key).body)
    except NotFound:
        return Action(task=look.task, what=f"{key} is gone")
    store.delete(key)
    return Action(task=look.task, what=f"{key} was not the ledger's: kept as {kept}")


def _keep(store: ObjectStore, key: str, body: bytes) -> str:
    kept = quarantine_key(key, body)
    store.create(kept, body)
    log.warning("%s/%s is kept as %s and replaced", store.url, key, kept)
    return kept
