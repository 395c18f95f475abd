"""The gang flow: one gang of a night, on a worker of its own; the night starts it and collects the outcomes."""

from typing import Any

from prefect import flow
from prefect.artifacts import Artifact
from prefect.client.schemas.objects import State

from flows.clock import check_clock
from flows.night import end, name_starter, show_verdict
from flows.requests import GangRequest
from flows.spread import OUTCOMES
from flows.stages.chain import PATIENCE, Mode, Night, run
from flows.stages.context import select_tasks
from flows.states import name_this_run, outlast
from flows.steps import open_context, step


@flow(name="gang", flow_run_name=name_this_run, persist_result=False)
def gang(request: GangRequest) -> State[Any]:
    """Train the tasks of one gang of a night together, and finish them; the night starts this, not a person."""
    check_clock()
    context = open_context()
    context.started_by = name_starter(request.actor, request.schedule)
    selection = select_tasks(context.settings, request.tasks)
    night = run(context, selection, Mode(step, isolate=True, show=show_verdict, force=request.force, patience=PATIENCE))
    outlast("the outcomes", lambda: Artifact(type=OUTCOMES, data=encode(night)).create())
    return end(night, "gang")


def encode(night: Night) -> dict[str, Any]:
    """Return what the night reads back; Prefect makes JSON of it, so that JSON would be JSON in JSON there."""
    outcomes = {name: outcome.to_json() for name, outcome in night.outcomes.items()}
    return {"outcomes": outcomes, "errors": night.errors}
