"""What is kept of a version that is judged again: first where a lost ledger is rebuilt from."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fixtures.mlflow_server import running_mlflow
from benchmarks.fixtures.prompts import a_request, a_task, published
from flows.stages.context import Context
from flows.stages.register import keep_verdict
from ptpipeline.errors import ServiceUnavailable
from ptpipeline.storage import FolderStore
from registry.mlflow.client import connect
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.repair.reconcile import reconcile
from tests.flows.stages.test_evidence import judged


class Unwilling(FolderStore):
    """A folder that takes nothing at the moment."""

    def create(self, key: str, body: bytes) -> None:
        raise ServiceUnavailable(f"{key}: the store does not answer")

    def replace(self, key: str, body: bytes, etag: str) -> None:
        raise ServiceUnavailable(f"{key}: the store does not answer")


def test_the_ledger_knows_no_verdict_that_the_store_does_not_hold(context: Context, tmp_path: Path) -> None:
    """A promotion may name it, and a ledger that is rebuilt from the store would lack it."""
    task, request = a_task(), a_request(a_task(), 1)
    version = judged(context, task, 1, None)
    before = context.registry.ledger.latest_verdict("mood", version.digest)
    assert request.verdict is not None
    anew = replace(request, verdict=request.verdict.model_copy(update={"measures": {"bytes.stored": 1.0}}))
    away = Context(context.settings, Registry(context.registry.ledger, Unwilling(tmp_path / "store")))
    with pytest.raises(ServiceUnavailable):
        keep_verdict(away, task, version, anew)
    assert context.registry.ledger.latest_verdict("mood", version.digest) == before
    keep_verdict(context, task, version, anew)
    assert context.registry.ledger.latest_verdict("mood", version.digest) == anew.verdict


@pytest.mark.servers
def test_mlflow_shows_a_version_that_is_judged_again_as_it_is_judged_now(context: Context, tmp_path: Path) -> None:
    task = a_task()
    with running_mlflow(tmp_path / "mlflow") as url:
        shown = replace(context.registry, mlflow=MlflowStore(url))
        number = published(shown, task, 1, kind="failed")
        anew = a_request(task, 1)
        keep_verdict(Context(context.settings, shown), task, shown.ledger.version(task.name, number), anew)
        assert connect(url).get_model_version(task.name, "1").tags["ptp.verdict"] == "passed"
        assert reconcile(shown, {}) == []
