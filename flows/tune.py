"""The tune flow: train, evaluate, gate and register the named tasks, and promote nothing."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.night import ended
from flows.requests import TuneRequest
from flows.steps import improved, opened

EVERYTHING = TuneRequest()


@flow(name="tune", persist_result=False)
def tune(request: TuneRequest = EVERYTHING) -> State[Any]:
    """Ingest, train what changed, evaluate, gate, register; one task's failure never stops another."""
    stages = opened()
    tasks, broken = stages.declared() if request.tasks is None else (stages.tasks(request.tasks), {})
    return ended(improved(stages, tasks, promote=False, broken=broken), "tune")
