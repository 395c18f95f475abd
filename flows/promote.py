"""The promote flow: a person moves an alias to a version that passed its gate."""

from functools import partial

from prefect import flow

from flows.requests import PromoteRequest
from flows.steps import opened, step
from registry.versions.promotion import Cause


@flow(name="promote", persist_result=False)
def promote(request: PromoteRequest) -> int:
    """Number of the version that the alias names now; ungated, failed or outdated versions are refused."""
    stages = opened()
    move = partial(
        stages.move,
        request.task,
        request.alias,
        request.version,
        Cause(request.actor, request.reason, request.override),
    )
    return step(f"promote {request.task} v{request.version}", move).version
