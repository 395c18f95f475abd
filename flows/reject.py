"""The reject flow: a person rejects a candidate that passed its gate, and is not asked for it again."""

from functools import partial

from prefect import flow

from flows.night import show_approvals
from flows.requests import RejectRequest, record_claim
from flows.stages.approve import reject as reject_version
from flows.states import name_this_run
from flows.steps import open_context, step
from registry.versions.commit import Cause


@flow(name="reject", flow_run_name=name_this_run, persist_result=False)
def reject(request: RejectRequest) -> str:
    """Return how the request for approval stands now; shows it, with report and difference, as an artifact."""
    context, cause = open_context(), Cause(record_claim(request.actor), request.reason)
    work = partial(reject_version, context, request.task, request.version, cause)
    approvals = step(f"reject {request.task} v{request.version}", work)
    show_approvals(context.registry, approvals)
    return approvals.status
