"""The registry: the ledger that decides, the store that keeps the bytes, and the MLflow server that shows them."""

from dataclasses import dataclass

from ptpipeline.settings import Settings
from ptpipeline.storage import ObjectStore, open_store
from registry.ledger import Ledger
from registry.mlflow_store import MlflowStore


@dataclass(frozen=True)
class Registry:
    """`mlflow` is None where there is no MLflow server; a later reconcile brings everything there."""

    ledger: Ledger
    store: ObjectStore
    mlflow: MlflowStore | None = None


def open_registry(settings: Settings) -> Registry:
    """The registry that the settings name; raises SettingsError or ServiceUnavailable. MLflow is not contacted yet."""
    mlflow = MlflowStore(settings.mlflow) if settings.mlflow else None
    return Registry(Ledger(settings.ledger), open_store(settings.store, settings.s3_endpoint), mlflow)
