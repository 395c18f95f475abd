"""The approve flow: a person approves a candidate that passed its gate; the last approval needed promotes it."""

from functools import partial

from prefect import flow

from flows.night import show_approvals
from flows.requests import ApproveRequest, record_claim
from flows.stages.approve import Decided
from flows.stages.approve import approve as approve_version
from flows.stages.context import Context
from flows.states import name_this_run
from flows.steps import open_context, step
from registry.versions.commit import Cause


@flow(name="approve", flow_run_name=name_this_run, persist_result=False)
def approve(request: ApproveRequest) -> str:
    """Return how the request for approval stands now; shows it, with report and difference, as an artifact."""
    context = open_context()
    decided = step(f"approve {request.task} v{request.version}", partial(answer, context, request))
    show_approvals(context.registry, decided.approvals)
    return f"promoted: {request.task}@{request.version}" if decided.promotion else decided.approvals.status


def answer(context: Context, request: ApproveRequest) -> Decided:
    """Return what the approval led to. The worker's key does not speak for whoever asks."""
    cause = Cause(record_claim(request.actor), request.reason)
    return approve_version(context, request.task, request.version, cause, request.verdict)
