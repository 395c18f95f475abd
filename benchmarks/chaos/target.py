"""A target: one registry under attack, with its own ledger, bucket and tasks; what workers need to open it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ptpipeline.storage import ObjectStore, RequestLimits, S3Store, open_store
from registry.ledger.ledger import Ledger
from registry.mlflow.store import MlflowStore
from registry.registry import Registry

SHORT_LIMITS = RequestLimits(seconds=1.5, attempts=3)


@dataclass(frozen=True)
class Target:
    """Addresses as settings give them. `endpoint` is the proxy before the S3 server, `direct` the server itself."""

    ledger: str
    store: str
    mlflow: str
    tasks: tuple[str, ...]
    endpoint: str
    direct: str

    def open(self, direct: bool = False) -> Registry:
        """Open the registry, through the proxy or (`direct`) past it."""
        return Registry(Ledger(self.ledger), self._open_store(direct), MlflowStore(self.mlflow))

    @contextmanager
    def inspect(self) -> Iterator[Registry]:
        """Open the registry past the proxy; close its connections when the block ends."""
        registry = self.open(direct=True)
        try:
            yield registry
        finally:
            registry.ledger.close()

    def _open_store(self, direct: bool) -> ObjectStore:
        if not self.store.startswith("s3://"):
            return open_store(self.store)
        bucket = self.store.removeprefix("s3://")
        if direct:
            return S3Store(bucket, endpoint=self.direct)
        return S3Store(bucket, endpoint=self.endpoint, limits=SHORT_LIMITS)
