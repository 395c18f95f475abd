"""A site: one registry under attack, its ledger, bucket and tasks its own; what workers need to open it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ptpipeline.storage import ObjectStore, RequestLimits, S3Store, open_store
from registry.ledger.ledger import Ledger
from registry.mlflow.store import MlflowStore
from registry.registry import Registry

IMPATIENT = RequestLimits(seconds=1.5, attempts=3)


@dataclass(frozen=True)
class Site:
    """Addresses as settings give them. `endpoint` is the proxy before the S3 server, `direct` the server itself."""

    ledger: str
    store: str
    mlflow: str
    tasks: tuple[str, ...]
    endpoint: str
    direct: str

    def opened(self, direct: bool = False) -> Registry:
        """The registry, through the proxy or (`direct`) past it."""
        return Registry(Ledger(self.ledger), self._store(direct), MlflowStore(self.mlflow))

    @contextmanager
    def looked_at(self) -> Iterator[Registry]:
        """The registry past the proxy; its connections are given back when the block ends."""
        registry = self.opened(direct=True)
        try:
            yield registry
        finally:
            registry.ledger.close()

    def _store(self, direct: bool) -> ObjectStore:
        if not self.store.startswith("s3://"):
            return open_store(self.store)
        bucket = self.store.removeprefix("s3://")
        return (
            S3Store(bucket, endpoint=self.direct)
            if direct
            else S3Store(bucket, endpoint=self.endpoint, limits=IMPATIENT)
        )
