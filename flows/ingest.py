"""The ingest flow: take a snapshot of each task's data if its source changed."""

from functools import partial
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.night import join_errors
from flows.requests import IngestRequest
from flows.stages import ingest as stage
from flows.stages.chain import Night, isolate
from flows.stages.context import select_tasks
from flows.states import name_this_run
from flows.steps import open_context, step

EVERYTHING = IngestRequest()


@flow(name="ingest", flow_run_name=name_this_run, persist_result=False)
def ingest(request: IngestRequest = EVERYTHING) -> State[Any]:
    """Read, check and split the rows of each task whose source changed; train nothing."""
    context = open_context()
    tasks, broken = select_tasks(context.settings, request.tasks)
    night, digests = Night({}, broken), {}
    for task in tasks:
        with isolate(night, [task]):
            snapshot = step(f"ingest {task.name}", partial(stage.ingest, context, task))
            digests[task.name] = snapshot.digest[:12]
    if night.errors:
        return Failed(message=join_errors(night.errors))
    return Completed(message="; ".join(f"{task}: snapshot {digest}" for task, digest in digests.items()))
