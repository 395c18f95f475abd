"""The registry: the ledger that decides, the store that keeps the bytes, and the MLflow server that shows them."""

from dataclasses import dataclass
from pathlib import Path

from ptpipeline.settings import Settings
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.conditional import check_conditional_puts
from ptpipeline.storage.signed import open_signed_store
from registry.ledger.ledger import Ledger
from registry.ledger.probe import last_probe, record_probe
from registry.mlflow.store import MlflowStore

CHECK_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Registry:
    """`mlflow` is None if there is no MLflow server; a later reconcile writes everything there.

    `tasks` is the folder of the task files, which say who may promote.
    """

    ledger: Ledger
    store: ObjectStore
    mlflow: MlflowStore | None = None
    tasks: Path | None = None


def open_registry(settings: Settings) -> Registry:
    """Return the registry that the settings name; raises SettingsError or ServiceUnavailable. Store and MLflow are
    not contacted yet.
    """
    mlflow = MlflowStore(settings.mlflow) if settings.mlflow else None
    return Registry(Ledger(settings.ledger), open_signed_store(settings), mlflow, settings.tasks)


def open_for_writing(settings: Settings) -> Registry:
    """Return the registry after checking that its store honours conditional puts; the ledger remembers the check for a
    day.

    Raises SettingsError if the store ignores the condition of a put, ServiceUnavailable if it does not answer.
    """
    registry = open_registry(settings)
    store, database = f"{registry.store.url} {settings.s3_endpoint or ''}".strip()[:500], registry.ledger.database
    last = last_probe(database, store)
    if last.at is None or not 0 <= last.now - last.at <= CHECK_SECONDS:  # in the future: another clock's time
        check_conditional_puts(registry.store)
        record_probe(database, store, last.now)
    return registry
