"""The tune flow: train, evaluate, gate and register the named tasks, and promote nothing."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Failed

from flows.chronicle import begin, finish, noting_cancellation
from flows.clock import check_clock
from flows.night import end, show_verdict
from flows.requests import TuneRequest
from flows.stages.chain import Mode, Night, run
from flows.stages.context import select_tasks
from flows.states import name_this_run
from flows.steps import open_context, step
from ptpipeline.errors import PtpError

EVERYTHING = TuneRequest()


@flow(name="tune", flow_run_name=name_this_run, persist_result=False)
def tune(request: TuneRequest = EVERYTHING) -> State[Any]:
    """Train the tasks that changed, and register what came out with the gate's verdict; promote nothing."""
    check_clock()
    context = open_context()
    begun = begin(context, request)
    try:
        with noting_cancellation(context, begun):
            selection = select_tasks(context.settings, request.tasks)
            night = run(context, selection, Mode(step, isolate=True, promote=False, show=show_verdict))
    except PtpError as error:
        finish(context, begun, Night({}, {}), Failed(message=str(error)))
        raise
    return finish(context, begun, night, end(night, "tune"))
