"""Reconciles: finishes what was interrupted and brings store and MLflow to what the ledger says.

It lists the store's names and MLflow's models in a few large reads, and then works only on what differs.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from ptpipeline.errors import PtpError
from ptpipeline.records.versions import Promotion, PromptVersion
from ptpipeline.storage.keys import (
    RELEASES,
    history_key,
    history_prefix,
    release_key,
    version_key,
    versions_prefix,
)
from ptpipeline.task.task import Task
from registry.ledger.ledger import Intent
from registry.ledger.projections import Alias, Projection, Projections, applied_projections, forget_sighting
from registry.mlflow.store import MlflowStore, Model, Shown
from registry.registry import Registry
from registry.versions import projection
from registry.versions.commit import write_release
from registry.versions.history import list_rows
from registry.versions.mlflow_alias import Action, describe_versions, find_outdated, restore
from registry.versions.mlflow_edit import judge
from registry.versions.naming import name_version
from registry.versions.projection import attempt, is_stored, settle, wait_for_lease, write_history
from registry.versions.publish import load_card

WAIT_BEYOND_LEASE = 5.0  # seconds


def reconcile(
    registry: Registry, tasks: Mapping[str, Task], task: str | None = None, wait: float | None = None
) -> list[Action]:
    """Finish what was interrupted and replay every projection, of one task or all; what cannot be mended now is an
    Action not done.

    `tasks` are the declared tasks by name: their policies judge what a person set in the MLflow UI. `wait` says for how
    many seconds per alias to wait for the lease of a killed process, by default until it has expired. If a task is
    named, the names of its versions in the store are read, else only listed. Raises ServiceUnavailable if the ledger
    does not answer.
    """
    wait = projection.LEASE_SECONDS + WAIT_BEYOND_LEASE if wait is None else wait
    actions = [_report_interrupted(intent) for intent in registry.ledger.intents(task)]
    models, failures = _models(registry, task), list[Action]()
    if isinstance(models, Action):  # the store's pointers are brought up to date without MLflow
        failures.append(models)
        registry, models = replace(registry, mlflow=None), {}
    heads, shown = registry.ledger.heads(task), applied_projections(registry.ledger)
    versions = _versions(registry, task)
    for name, known in versions.items():
        actions += attempt(name, partial(_restore_names, registry, known, task is not None))
        if registry.mlflow:
            shown_there = models.get(name, Model())
            actions += attempt(name, partial(_restore_versions, registry, registry.mlflow, known, shown_there))
    for head in heads:
        followed = min(head.seq, shown.applied.get(Projection("store", head.task, head.alias), 0))
        actions += attempt(head.task, partial(_restore_history, registry, head, followed))
        if not _agrees(registry, head, shown, models.get(head.task, Model())):
            actions += _restore_alias(registry, tasks, head, wait)
        elif Alias(head.task, head.alias) in shown.sighted:
            forget_sighting(registry.ledger, head)
    if registry.mlflow:
        for name, known in versions.items():
            own = list_rows(registry.ledger, name, [head for head in heads if head.task == name])
            by_digest = {version.digest: version for version in known}
            if find_outdated(own, models.get(name, Model()), by_digest):
                actions += attempt(name, partial(describe_versions, registry, registry.mlflow, name))
    if task is None:
        actions += attempt("releases", partial(_restore_releases, registry))
    return actions + failures


def reconcile_aliases(registry: Registry, tasks: Mapping[str, Task], task: str) -> list[Action]:
    """Let store and MLflow show the heads of the task's aliases, and judge what a person set in MLflow; no more."""
    actions = list[Action]()
    for head in registry.ledger.heads(task):
        actions += _restore_alias(registry, tasks, head, projection.FOLLOW_SECONDS)
    return actions


def _report_interrupted(intent: Intent) -> Action:
    what = f"publish of {intent.digest[:12]} was interrupted; `ptp run {intent.task}` finishes it"
    return Action(task=intent.task, what=what, done=False)


def _models(registry: Registry, task: str | None) -> dict[str, Model] | Action:
    """MLflow's models by task, or the Action that they could not be read."""
    try:
        return registry.mlflow.models(task) if registry.mlflow else {}
    except PtpError as error:
        return Action(task=task or "all tasks", what=str(error), done=False)


def _versions(registry: Registry, task: str | None) -> dict[str, list[PromptVersion]]:
    """The registered versions by task, oldest first."""
    versions: dict[str, list[PromptVersion]] = {}
    for version in reversed(registry.ledger.versions(task, limit=None)):
        versions.setdefault(version.task, []).append(version)
    return dict(sorted(versions.items()))


def _restore_releases(registry: Registry) -> list[Action]:
    """Write releases that the store does not hold, because their promoter died after the commit."""
    stored = set(registry.store.keys(RELEASES))
    lost = [release for release in registry.ledger.releases() if release_key(release.name) not in stored]
    for release in lost:
        write_release(registry.store, release)
    return [Action(task="releases", what=f"release {release.name} written to the store") for release in lost]


def _restore_names(registry: Registry, versions: list[PromptVersion], read: bool) -> list[Action]:
    named = set() if read else set(registry.store.keys(versions_prefix(versions[0].task)))
    doubtful = [version for version in versions if version_key(version.task, version.number) not in named]
    return [
        Action(task=version.task, what=f"version {version.number} named in the store")
        for version in doubtful
        if name_version(registry.store, version)
    ]


# ---------------------------------------------------------------- versions in MLflow


def _restore_versions(
    registry: Registry, mlflow: MlflowStore, versions: list[PromptVersion], model: Model
) -> list[Action]:
    """Restore the tags that somebody altered, then register what MLflow lost or never had, in the ledger's order."""
    known, shown, actions = {version.digest: version for version in versions}, set(), []
    for entry in model.versions.values():
        digest = (
            entry.digest
            if _is_sound(known, model, entry)
            else mlflow.digest_of_source(versions[0].task, entry.source, list(known)) or entry.digest
        )
        version = known.get(digest)
        if version is not None:
            shown.add(digest)
            if (entry.digest, entry.version) != (digest, str(version.number)) and not version.collected:
                actions += attempt(version.task, partial(_restore_tags, registry, mlflow, version, entry))
    for version in versions:
        if version.digest not in shown and not version.collected:
            actions += attempt(version.task, partial(_restore_version, registry, mlflow, version))
    return actions


def _restore_tags(registry: Registry, mlflow: MlflowStore, version: PromptVersion, entry: Shown) -> list[Action]:
    mlflow.describe(load_card(registry, version.task, version.digest), version, entry.number)
    what = f"tags of MLflow version {entry.number} restored: it is version {version.number}"
    return [Action(task=version.task, what=what)]


def _is_sound(known: Mapping[str, PromptVersion], model: Model, entry: Shown) -> bool:
    """Whether the tags of a model version agree with the ledger and with each other, and no other has the same."""
    version = known.get(entry.digest)
    if version is None or entry.version != str(version.number):
        return False
    return sum(other.digest == entry.digest for other in model.versions.values()) == 1


def _restore_version(registry: Registry, mlflow: MlflowStore, version: PromptVersion) -> list[Action]:
    return [restore(registry, mlflow, version)]


# ---------------------------------------------------------------- aliases


def _restore_alias(registry: Registry, tasks: Mapping[str, Task], head: Promotion, wait: float) -> list[Action]:
    """Project an alias that does not agree everywhere; if MLflow shows another version then, the edit is judged."""
    actions = attempt(head.task, partial(settle, registry, head, wait))
    if registry.mlflow is None or not all(action.done for action in actions):
        return actions
    return actions + attempt(
        head.task, partial(wait_for_lease, partial(judge, registry, registry.mlflow, tasks, head), wait)
    )


def _agrees(registry: Registry, head: Promotion, shown: Projections, model: Model) -> bool:
    """Whether store and MLflow show the head, so that there is nothing to write; in the store it reads the pointer."""
    if registry.mlflow:
        version = model.versions.get(model.aliases.get(head.alias, ""))
        if version is None or version.digest != head.digest or model.applied.get(head.alias) != head.seq:
            return False
        if shown.applied.get(Projection("mlflow", head.task, head.alias)) != head.seq:
            return False
    return shown.applied.get(Projection("store", head.task, head.alias)) == head.seq and _is_stored(registry, head)


def _is_stored(registry: Registry, head: Promotion) -> bool:
    try:
        return is_stored(registry, head)
    except PtpError:
        return False  # the projection reads it again, and its failure is this alias's alone


def _restore_history(registry: Registry, head: Promotion, followed: int) -> list[Action]:
    """Write promotions up to `followed` that the store lost; the projection brings the later ones."""
    stored = set(registry.store.keys(history_prefix(head.task, head.alias)))
    lost = [seq for seq in range(1, followed + 1) if history_key(head.task, head.alias, seq) not in stored]
    if not lost:
        return []
    write_history(registry, [row for row in registry.ledger.history(head.task, head.alias) if row.seq in lost])
    return [Action(task=head.task, what=f"{len(lost)} promotions of {head.alias} kept in the store again")]
