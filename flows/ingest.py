"""The ingest flow: take a snapshot of each task's data where its source changed."""

from functools import partial
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.requests import IngestRequest
from flows.steps import Night, alone, opened, step

EVERYTHING = IngestRequest()


@flow(name="ingest", persist_result=False)
def ingest(request: IngestRequest = EVERYTHING) -> State[Any]:
    """Bring the snapshots up to date; one task's failure never stops another."""
    stages = opened()
    tasks, broken = stages.declared() if request.tasks is None else (stages.tasks(request.tasks), {})
    night, digests = Night({}, broken), {}
    for task in tasks:
        with alone(night, [task]):
            digests[task.name] = step(f"ingest {task.name}", partial(stages.ingest, task)).digest[:12]
    if night.errors:
        return Failed(message="; ".join(f"{task}: {sentence}" for task, sentence in night.errors.items()))
    return Completed(message="; ".join(f"{task}: snapshot {digest}" for task, digest in digests.items()))
