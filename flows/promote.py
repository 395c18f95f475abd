"""The promote flow: a person moves an alias to a version that passed its gate."""

from functools import partial

from prefect import flow

from flows.requests import PromoteRequest, record_claim
from flows.stages.context import Context
from flows.stages.promote import move
from flows.states import name_this_run
from flows.steps import open_context, step
from ptpipeline.records.versions import Promotion
from registry.versions.commit import Cause


@flow(name="promote", flow_run_name=name_this_run, persist_result=False)
def promote(request: PromoteRequest) -> int:
    """Let an alias name a version that passed its gate, such as one that awaits approval; the gate judges again.

    Returns the number of the version that the alias names now.
    """
    work = partial(answer, open_context(), request)
    return step(f"promote {request.task} v{request.version}", work).version


def answer(context: Context, request: PromoteRequest) -> Promotion:
    """Return the promotion that the request led to. The worker's key does not speak for whoever asks: so what needs a
    promoter's signature is refused.
    """
    cause = Cause(record_claim(request.actor), request.reason, request.override)
    return move(context, request.task, request.alias, request.version, cause)
