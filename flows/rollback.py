"""The rollback flow: a person moves an alias back to a version that was once promoted."""

from functools import partial

from prefect import flow

from flows.requests import RollbackRequest
from flows.steps import opened, step
from registry.versions.promotion import Cause


@flow(name="rollback", persist_result=False)
def rollback(request: RollbackRequest) -> int:
    """Number of the version that the alias names now."""
    stages = opened()
    move = partial(stages.roll_back, request.task, request.alias, request.to, Cause(request.actor, request.reason))
    return step(f"rollback {request.task}", move).version
