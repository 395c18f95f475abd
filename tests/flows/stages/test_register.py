"""What is kept of a version that is judged again: first where a lost ledger is rebuilt from."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fixtures.mlflow_server import running_mlflow
from benchmarks.fixtures.prompts import a_request, a_task, an_artifact, published
from flows.stages.context import Context
from flows.stages.register import keep_verdict, reveal
from ptpipeline.errors import NotFound, ServiceUnavailable
from ptpipeline.storage import FolderStore
from registry.mlflow.client import connect
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.repair.reconcile import reconcile
from registry.versions import publish
from registry.versions.publish import stage
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


@pytest.mark.parametrize(
    ("changes", "withheld"),
    [
        ({"passed": False, "figures": "quiet"}, True),
        ({"passed": True, "figures": "quiet"}, False),
        ({"passed": False, "figures": "open"}, False),
    ],
)
def test_only_what_is_withheld_costs_a_look_to_show(context: Context, changes: dict[str, Any], withheld: bool) -> None:
    task = a_task()
    version = judged(context, task, 1, None)
    verdict = context.registry.ledger.latest_verdict("mood", version.digest)
    assert verdict is not None
    checks = [check.model_copy(update={"passed": changes["passed"]}) for check in verdict.checks]
    context.registry.ledger.save_verdict(verdict.model_copy(update=changes | {"checks": checks}))
    asked = pytest.raises(NotFound) if withheld else nullcontext()  # its rows are not stored here
    with asked:
        assert reveal(context, task, version, "ann") is None


def test_what_nobody_judged_has_nothing_to_reveal(context: Context) -> None:
    task = a_task()
    stage(context.registry.ledger, context.registry.store, an_artifact(task, 1))
    version = publish.register(context.registry, replace(a_request(task, 1), verdict=None))
    assert reveal(context, task, version, "ann") is None


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
