"""The reconcile flow: bring storage pointers and MLflow to what the ledger says."""

from functools import partial

from prefect import flow

from flows.requests import ReconcileRequest
from flows.steps import opened, step

EVERYTHING = ReconcileRequest()


@flow(name="reconcile", persist_result=False)
def reconcile(request: ReconcileRequest = EVERYTHING) -> list[str]:
    """What was mended, one sentence each; empty where all agreed."""
    stages = opened()
    return step(f"reconcile {request.task or 'all tasks'}", partial(stages.reconcile, request.task))
