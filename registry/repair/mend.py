"""Mends differences that need no person, because the ledger or a verified copy says for certain what is right.

Nothing is thrown away: what is replaced in the store is kept under `prompts/<task>/quarantine/`.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from ptpipeline.data.snapshot import encode_manifest
from ptpipeline.errors import NotFound
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.data import Snapshot
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.addresses import is_dossier
from ptpipeline.storage.keys import (
    history_key,
    manifest_key,
    pointer_key,
    quarantined_release_key,
    release_key,
    tensors_key,
)
from ptpipeline.storage.signed import is_accepted, without_checks
from ptpipeline.task.task import Task
from registry.card.card import Provenance
from registry.ledger.lease import remove_expired_leases
from registry.ledger.ledger import Release
from registry.listing import list_task
from registry.mlflow.copy import load_copy
from registry.registry import Registry
from registry.repair.difference import Difference, Kind
from registry.repair.files import mend_files, mend_results
from registry.repair.inventory import Inventory, take_inventory
from registry.repair.objects import find_snapshot_flaws, is_release
from registry.repair.prompts import find_misplaced
from registry.repair.reconcile import reconcile
from registry.versions.commit import write_release
from registry.versions.content import keep, set_aside
from registry.versions.dossier import Dossier, lost_dossiers, write_dossier
from registry.versions.mlflow_alias import Action
from registry.versions.projection import attempt, write_history
from registry.versions.publish import register

BY_RECONCILE: tuple[Kind, ...] = ("name", "pointer", "model", "alias")


def fix(registry: Registry, tasks: Mapping[str, Task], differences: Iterable[Difference]) -> list[Action]:
    """Mend those differences that are safe; what could not be done now is an Action not done. Repeating it changes
    nothing.

    `tasks` are the declared tasks by name, as `reconcile` needs them. Raises ServiceUnavailable if the ledger does
    not answer.
    """
    kinds: dict[str, set[Kind]] = {}
    for difference in differences:
        if difference.safe:
            kinds.setdefault(difference.task, set()).add(difference.kind)
    every_kind = {kind for of_task in kinds.values() for kind in of_task}
    actions = _mend_leases(registry) if "lease" in every_kind else []
    actions += _mend_releases(registry) if "release" in every_kind else []
    for task, of_task in sorted(kinds.items()):
        actions += _mend_snapshots(registry, task) if "snapshot" in of_task else []
        actions += _fix_task(registry, tasks, task, of_task)
    return actions


def _fix_task(registry: Registry, tasks: Mapping[str, Task], task: str, kinds: set[Kind]) -> list[Action]:
    by_kind: dict[Kind, Callable[[Inventory], list[Action]]] = {
        "bytes": _mend_bytes,
        "history": _mend_history,
        "dossier": _mend_dossiers,
        "file": mend_files,
        "results": mend_results,
        "pointer": _mend_pointers,
        "publish": _mend_publishes,
    }
    actions: list[Action] = []
    chosen = [mend for kind, mend in by_kind.items() if kind in kinds]
    if chosen:
        actions += attempt(task, partial(_mend, registry, task, chosen))
    if kinds.intersection(BY_RECONCILE):
        actions += reconcile(registry, tasks, task)
    return actions


def _mend(registry: Registry, task: str, chosen: Iterable[Callable[[Inventory], list[Action]]]) -> list[Action]:
    inventory = take_inventory(registry, list_task(registry.store, task))
    return [action for mend in chosen for action in attempt(task, partial(mend, inventory))]


def _mend_bytes(inventory: Inventory) -> list[Action]:
    """Restore damaged prompts from the copy that MLflow keeps."""
    mlflow, actions = inventory.registry.mlflow, []
    for number, digest in inventory.kept_versions().items():
        damaged = isinstance(inventory.artifacts[digest], str)
        copy = load_copy(mlflow, inventory.task, digest) if mlflow and damaged else None
        if copy:
            _write_copy(inventory.registry, copy)
            actions.append(Action(task=inventory.task, what=f"bytes of version {number} restored from MLflow's copy"))
    return actions


def _write_copy(registry: Registry, copy: Artifact) -> None:
    task, digest = copy.manifest.task, copy.digest
    registry.ledger.intend(task, digest)  # keeps the garbage collection away until all is there
    manifest = json.dumps(copy.manifest.to_json(), indent=1, sort_keys=True).encode()
    _write_body(registry.store, tensors_key(task, digest), copy.tensors)
    _write_body(registry.store, manifest_key(task, digest), manifest)
    registry.ledger.fulfil(task, digest)


def _write_body(store: ObjectStore, key: str, body: bytes) -> None:
    try:
        stored = without_checks(store).read(key)
    except NotFound:
        store.create(key, body)
        return
    if stored.body != body:
        keep(store, key, stored.body)
        store.replace(key, body, stored.etag)


def _mend_history(inventory: Inventory) -> list[Action]:
    """Write promotions that the store does not hold; what is at their keys instead is set aside."""
    actions = []
    for alias, rows in inventory.holdings.history.items():
        keys = {history_key(inventory.task, alias, row.seq) for row in rows}
        aside = [_set_aside(inventory, refused.key) for refused in inventory.contents.refused if refused.key in keys]
        stored = {row.seq for row in inventory.contents.history.get(alias, [])}
        lost = [row for row in rows if row.seq not in stored]
        if lost:
            write_history(inventory.registry, lost)
            what = f"{len(lost)} promotions of {alias} written to the store"
            actions += [*aside, Action(task=inventory.task, what=what)]
    return actions


def _mend_dossiers(inventory: Inventory) -> list[Action]:
    """Write a dossier for every verdict that the store does not hold, or for all if it holds another as the newest,
    behind which the ledger's newest is dated; what is unreadable is set aside.
    """
    unreadable = [refused.key for refused in inventory.contents.refused if is_dossier(refused.key)]
    actions = [_set_aside(inventory, key) for key in unreadable]
    described, stored = inventory.contents.described_digests(), inventory.contents.verdict_digests()
    misplaced = find_misplaced(inventory)
    for number, digest in inventory.kept_versions().items():
        publication = inventory.registry.ledger.publication(inventory.task, digest)
        if publication is None:
            continue
        lost = lost_dossiers(inventory.registry.ledger, publication, set() if digest in misplaced else stored)
        if not (lost or digest in described):
            report = inventory.registry.ledger.report_of(inventory.task, digest)
            lost = [Dossier(publication=publication, report=report, verdict=None)]
        if digest in misplaced:
            lost[-1] = _date_anew(inventory, lost[-1])
        for dossier in lost:
            write_dossier(inventory.registry.store, dossier)
        if lost:
            actions.append(Action(task=inventory.task, what=f"records of version {number} written to the store"))
    return actions


def _date_anew(inventory: Inventory, newest: Dossier) -> Dossier:
    """Return the dossier with a time behind all that the store holds of its prompt, and let the ledger date its verdict
    so too.
    """
    ledger, contents = inventory.registry.ledger, inventory.contents
    digest = newest.publication.tuned.digest
    stored = [contents.times[key] for key, one in contents.dossiers.items() if one.publication.tuned.digest == digest]
    at = ledger.time_behind(max(stored))
    if newest.verdict:
        ledger.save_verdict(newest.verdict, at)
    return newest.model_copy(update={"judged_at": at})


def _mend_pointers(inventory: Inventory) -> list[Action]:
    """Set pointers aside whose alias nobody promoted. `reconcile`, which follows, mends the others and what somebody
    promotes meanwhile, `rebuild` what the ledger lost.
    """
    actions, ledger = [], inventory.registry.ledger
    for alias, pointer in sorted(inventory.contents.pointers.items()):
        if alias in inventory.holdings.history or inventory.is_ahead(alias, pointer):
            continue
        if inventory.holdings.versions and ledger.head(inventory.task, alias) is None:
            actions.append(_set_aside(inventory, pointer_key(inventory.task, alias)))
    return actions


def _mend_publishes(inventory: Inventory) -> list[Action]:
    """Finish interrupted publishes whose dossier says all that they were asked to do."""
    newest = {dossier.publication.tuned.digest: dossier for dossier in inventory.contents.dossiers.values()}
    actions = []
    for digest in sorted(inventory.holdings.intents.keys() & newest.keys()):
        actions += attempt(inventory.task, partial(_finish, inventory.registry, newest[digest].provenance))
    return actions


def _finish(registry: Registry, provenance: Provenance) -> list[Action]:
    version = register(registry, provenance)
    return [Action(task=version.task, what=f"publish of {version.digest[:12]} finished: version {version.number}")]


def _mend_leases(registry: Registry) -> list[Action]:
    count = remove_expired_leases(registry.ledger.database)
    return [Action(task="leases", what=f"{count} given back for holders that are gone")]


def _mend_releases(registry: Registry) -> list[Action]:
    return [
        action
        for release in registry.ledger.releases()
        for action in attempt("releases", partial(_mend_release, registry, release))
    ]


def _mend_release(registry: Registry, release: Release) -> list[Action]:
    key = release_key(release.name)
    try:
        stored = without_checks(registry.store).read(key).body
    except NotFound:
        stored = None
    if stored is not None:
        if is_release(stored, release) and is_accepted(registry.store, key, stored):
            return []
        registry.store.create(quarantined_release_key(release.name, stored), stored)
        registry.store.delete(key)
    write_release(registry.store, release)
    return [Action(task="releases", what=f"release {release.name} written to the store")]


def _mend_snapshots(registry: Registry, task: str) -> list[Action]:
    """Write manifests from the ledger's records; rows cannot be mended from anything."""
    return [
        action
        for flaw in find_snapshot_flaws(registry, task)
        if flaw.record
        for action in attempt(task, partial(_mend_manifest, registry.store, flaw.key, flaw.record))
    ]


def _mend_manifest(store: ObjectStore, key: str, record: Snapshot) -> list[Action]:
    _write_body(store, key, encode_manifest(record))
    return [Action(task=record.task, what=f"{key} written from the ledger")]


def _set_aside(inventory: Inventory, key: str) -> Action:
    return Action(task=inventory.task, what=set_aside(inventory.registry.store, key))
