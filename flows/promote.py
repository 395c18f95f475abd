"""The promote flow: a person moves an alias to a version that passed its gate."""

from functools import partial

from prefect import flow

from flows.requests import PromoteRequest
from flows.stages.release import move
from flows.steps import open_context, step
from registry.versions.promotion import Cause


@flow(name="promote", persist_result=False)
def promote(request: PromoteRequest) -> int:
    """Return the number of the version that the alias names now; what the gate refuses is refused here too."""
    cause = Cause(request.actor, request.reason, request.override)
    work = partial(move, open_context(), request.task, request.alias, request.version, cause)
    return step(f"promote {request.task} v{request.version}", work).version
