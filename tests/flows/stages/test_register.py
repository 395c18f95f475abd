"""What is kept of a version that is judged again: first where a lost ledger is rebuilt from."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_request, a_task
from flows.stages.context import Context
from flows.stages.register import keep_verdict
from ptpipeline.errors import ServiceUnavailable
from ptpipeline.storage import FolderStore
from registry.registry import Registry
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
