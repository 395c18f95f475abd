"""The tune flow: train, evaluate, gate and register the named tasks, and promote nothing."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.night import end, show_verdict
from flows.requests import TuneRequest
from flows.stages.chain import Mode, run
from flows.stages.context import select_tasks
from flows.steps import open_context, step

EVERYTHING = TuneRequest()


@flow(name="tune", persist_result=False)
def tune(request: TuneRequest = EVERYTHING) -> State[Any]:
    """Ingest, train what changed, evaluate, gate, register; one task's failure never stops another."""
    context = open_context()
    selection = select_tasks(context.settings, request.tasks)
    return end(run(context, selection, Mode(step, isolate=True, promote=False, show=show_verdict)), "tune")
