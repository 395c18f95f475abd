"""The rollback flow: a person moves an alias back to a version that it named before."""

from functools import partial

from prefect import flow

from flows.requests import RollbackRequest, record_claim
from flows.states import name_this_run
from flows.steps import open_context, step
from registry.versions import promotion
from registry.versions.commit import Cause


@flow(name="rollback", flow_run_name=name_this_run, persist_result=False)
def rollback(request: RollbackRequest) -> int:
    """Let an alias name the version again that it named before, at once and without a gate.

    Returns the number of the version that the alias names now.
    """
    cause = Cause(record_claim(request.actor), request.reason)
    work = partial(promotion.rollback, open_context().registry, request.task, cause, request.to, request.alias)
    return step(f"rollback {request.task}", work).version
