"""The reconcile flow: bring storage pointers and MLflow to what the ledger says."""

from functools import partial

from prefect import flow

from flows.requests import ReconcileRequest
from flows.stages.context import select_tasks
from flows.states import name_this_run
from flows.steps import open_context, step
from registry.repair import reconcile as repair

EVERYTHING = ReconcileRequest()


@flow(name="reconcile", flow_run_name=name_this_run, persist_result=False)
def reconcile(request: ReconcileRequest = EVERYTHING) -> list[str]:
    """Bring pointers in the store and aliases in MLflow to what the ledger says, and judge aliases set in MLflow.

    Returns what was mended, one sentence each; nothing if all agreed.
    """
    context = open_context()
    tasks = {task.name: task for task in select_tasks(context.settings).tasks}
    work = partial(repair.reconcile, context.registry, tasks, request.task)
    return [f"{action.task}: {action.what}" for action in step(f"reconcile {request.task or 'all tasks'}", work)]
