"""Compares the ledger with what follows it: every kind of object in the store, and MLflow; changes nothing.

Each task's objects are listed once and read once. A publish or a promotion that runs meanwhile is between its steps
for a moment: so what differs is compared a second time.
"""

from collections.abc import Callable, Iterator
from functools import partial

from ptpipeline.errors import NotFound
from ptpipeline.progress import advance, expect, phase
from registry.ledger.lease import expired_leases
from registry.listing import TaskListing, list_task, list_tasks
from registry.mlflow.store import MlflowStore, Model
from registry.registry import Registry
from registry.repair.difference import FIX, Difference
from registry.repair.files import compare_files, compare_results, compare_signatures
from registry.repair.inventory import Inventory, take_inventory
from registry.repair.models import compare_model
from registry.repair.objects import compare_checkpoints, compare_releases, compare_servers, compare_snapshots
from registry.repair.promotions import compare_chains, compare_history, compare_ledger, compare_pointers
from registry.repair.prompts import compare_bytes, compare_dossiers, compare_names, compare_publishes, find_orphans

COMPARISONS = (
    compare_bytes,
    compare_names,
    compare_ledger,
    compare_history,
    compare_chains,
    compare_pointers,
    compare_dossiers,
    compare_files,
    compare_signatures,
    compare_results,
    compare_publishes,
    find_orphans,
)


def examine(registry: Registry, task: str | None = None) -> list[Difference]:
    """Return every difference between the ledger and what follows it, of one task or all; none if all agrees.

    Raises ServiceUnavailable if the ledger, the store or MLflow does not answer, NotFound if nobody knows the task.
    """
    differences: list[Difference] = []
    versions: dict[str, dict[int, str]] = {}
    with phase(""):
        expect(len(_known_tasks(registry)) if task is None else 1, "tasks")
        for listing in _list_all(registry) if task is None else [_list_one(registry, task)]:
            inventory = take_inventory(registry, listing)
            versions[listing.task] = inventory.kept_versions()
            differences += _confirm_differences(inventory)
            advance(1)
    if registry.mlflow:
        models = registry.mlflow.models(task)
        for name, kept in versions.items():
            differences += _model_differences(registry, registry.mlflow, name, kept, models.get(name, Model()))
    differences += [*_confirm(partial(compare_snapshots, registry, task)), *_leases(registry, task)]
    if task is None:
        for compare in (compare_releases, compare_checkpoints, compare_servers):
            differences += _confirm(partial(compare, registry))
    return differences


def _list_one(registry: Registry, task: str) -> TaskListing:
    listing = list_task(registry.store, task)
    if not listing.objects and task not in _known_tasks(registry):
        raise NotFound(
            f"neither the ledger nor {registry.store.url} knows a task {task!r}; `ptp versions` lists what is "
            "registered"
        )
    return listing


def _list_all(registry: Registry) -> Iterator[TaskListing]:
    unlisted = _known_tasks(registry)
    for listing in list_tasks(registry.store):
        unlisted.discard(listing.task)
        yield listing
    for task in sorted(unlisted):
        yield list_task(registry.store, task)


def _known_tasks(registry: Registry) -> set[str]:
    return {*registry.ledger.tasks(), *(intent.task for intent in registry.ledger.intents())}


def _confirm(compare: Callable[[], Iterator[Difference]]) -> list[Difference]:
    """Return what differs both times."""
    first = [*compare()]
    second = {*compare()} if first else set()
    return [difference for difference in first if difference in second]


def _confirm_differences(inventory: Inventory) -> list[Difference]:
    registry, task = inventory.registry, inventory.task
    inventories = iter([inventory])
    return _confirm(
        lambda: _differences(next(inventories, None) or take_inventory(registry, list_task(registry.store, task)))
    )


def _differences(inventory: Inventory) -> Iterator[Difference]:
    for compare in COMPARISONS:
        yield from compare(inventory)


def _model_differences(
    registry: Registry, mlflow: MlflowStore, task: str, versions: dict[int, str], model: Model
) -> list[Difference]:
    models = iter([model])
    return _confirm(
        lambda: compare_model(registry, task, versions, next(models, None) or mlflow.models(task).get(task, Model()))
    )


def _leases(registry: Registry, task: str | None) -> Iterator[Difference]:
    """Leases that expired and that nobody gave back: their holder was killed."""
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
