"""The ingest flow: take a snapshot of each task's data where its source changed."""

from functools import partial

from prefect import flow

from flows.requests import IngestRequest
from flows.steps import opened, step

EVERYTHING = IngestRequest()


@flow(name="ingest", persist_result=False)
def ingest(request: IngestRequest = EVERYTHING) -> dict[str, str]:
    """Snapshot digest by task."""
    stages = opened()
    return {task.name: step(f"ingest {task.name}", partial(stages.ingest, task)).digest for task in stages.tasks(request.tasks)}
