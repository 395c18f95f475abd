"""The registry: the ledger that decides, the store that keeps the bytes, and the MLflow server that shows them."""

import atexit
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ptpipeline.settings import Settings, check_place
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.conditional import check_conditional_puts
from ptpipeline.storage.signed import open_signed_store
from registry.ledger.ledger import Ledger
from registry.ledger.probe import LastProbe, last_probe, record_probe
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


def open_for_reading(settings: Settings) -> Registry:
    """Return the registry without creating anything: a ledger whose file is not there is read as an empty one.

    Raises NotFound if there is neither a project nor a stack, and what `open_registry` raises.
    """
    check_place(settings, "ledger")
    file = settings.ledger.removeprefix("sqlite:///")
    if file != settings.ledger and not os.path.lexists(file):
        folder = TemporaryDirectory(prefix="ptp-empty-")
        atexit.register(folder.cleanup)
        settings = settings.model_copy(update={"ledger": f"sqlite:///{folder.name}/ledger.db"})
    return open_registry(settings)


def open_for_writing(settings: Settings) -> Registry:
    """Return the registry after checking that its store honours conditional puts; the ledger remembers the check for a
    day.

    Raises SettingsError if the store ignores the condition of a put, ServiceUnavailable if it does not answer, NotFound
    if there is neither a project nor a stack.
    """
    check_place(settings, "ledger")
    registry = open_registry(settings)
    last = last_probe(registry.ledger.database, _name_probed(settings, registry))
    if not _is_fresh(last):
        check_conditional_puts(registry.store)
        record_probe(registry.ledger.database, _name_probed(settings, registry), last.now)
    return registry


def is_checked(settings: Settings) -> bool:
    """Whether the ledger remembers that its store was seen to honour conditional puts within a day."""
    registry = open_registry(settings)
    try:
        return _is_fresh(last_probe(registry.ledger.database, _name_probed(settings, registry)))
    finally:
        registry.ledger.close()


def _name_probed(settings: Settings, registry: Registry) -> str:
    return f"{registry.store.url} {settings.s3_endpoint or ''}".strip()[:500]


def _is_fresh(last: LastProbe) -> bool:
    return last.at is not None and 0 <= last.now - last.at <= CHECK_SECONDS  # in the future: another clock's time
