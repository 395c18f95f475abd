"""How a flow run is known in Prefect: by its name, its tags, and the state that it ends in."""

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import stamina
from httpx import HTTPError, HTTPStatusError, TransportError
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.requests import name_run
from flows.stages.chain import Night
from flows.stages.outcome import AWAITING_APPROVAL, GATE_FAILED, Outcome
from ptpipeline.records.base import Record

PATIENCE = 600.0  # seconds that Prefect's server may be away when a run tells it something
_LISTED = 8  # tasks whose own status the message of a run states; of more it counts them

log = logging.getLogger("ptpipeline.flows")


def outlast(what: str, tell: Callable[[], object], patience: float = PATIENCE) -> None:
    """Tell Prefect something; while its server is away, try again for `patience` seconds.

    The work itself is done: what the server cannot be told is logged, and ends nothing. Raises what the server refuses.
    """
    try:
        for again in stamina.retry_context(
            on=_is_away, attempts=None, timeout=patience, wait_initial=0.5, wait_max=30.0
        ):
            with again:
                tell()
    except HTTPError as error:
        if not _is_away(error):
            raise
        log.warning("Prefect does not show %s: its server was away (%s)", what, type(error).__name__)


def _is_away(error: Exception) -> bool:
    if isinstance(error, HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, TransportError)


def name_this_run() -> str:
    """Return the name of the flow run that begins here, for `flow_run_name` of a flow."""
    request = flow_run.parameters.get("request") or {}
    asked = request.to_json() if isinstance(request, Record) else dict(request)
    return name_run(str(flow_run.flow_name), asked, flow_run.scheduled_start_time or datetime.now(UTC))


def end_state(night: Night) -> State[Any]:
    """Return the state that a run over several tasks ends in.

    Failed if a task could not go through; else `Gate failed`, of the type Failed, if a candidate was refused; else
    `Awaiting approval`, of the type Completed, if one waits for a person; else Completed.
    """
    outcomes = [night.outcomes[task] for task in sorted(night.outcomes)]
    if night.errors:
        sentences = "; ".join(f"{task}: {sentence}" for task, sentence in night.errors.items())
        return Failed(message=f"{len(night.errors)} of {len(night.errors) + len(outcomes)} tasks failed: {sentences}")
    message = _summarise(outcomes)
    if any(outcome.refused for outcome in outcomes):
        return Failed(name=GATE_FAILED, message=message)
    if any(outcome.awaits_approval for outcome in outcomes):
        return Completed(name=AWAITING_APPROVAL, message=message)
    return Completed(message=message)


def tag_run(night: Night) -> None:
    """Tag the run with each task that it worked on or failed for, and with the verdicts that it came to."""
    _add_tags(list_tags(night))


def list_tags(night: Night) -> set[str]:
    """Return the tags of a run: the tasks that it worked on or failed for, and the verdicts that it came to."""
    changed = [outcome for outcome in night.outcomes.values() if outcome.status != "unchanged"]
    tasks = {f"task:{task}" for task in [*(outcome.task for outcome in changed), *night.errors]}
    return tasks | {f"verdict:{'failed' if outcome.refused else 'passed'}" for outcome in changed}


def _add_tags(tags: Iterable[str]) -> None:
    """Add tags to this run; that is only a help to find it, so a server that is away ends nothing."""
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, tags=sorted({*flow_run.tags, *tags}))
    except (HTTPError, PrefectException) as error:
        log.warning("this run gets no tags: Prefect does not take them (%s)", type(error).__name__)


def _summarise(outcomes: list[Outcome]) -> str:
    """Return the status of each task; of many tasks, how many have which."""
    if len(outcomes) <= _LISTED:
        return "; ".join(f"{outcome.task}: {outcome.status}" for outcome in outcomes) or "no tasks"
    names: dict[str, list[str]] = {}
    for outcome in outcomes:
        names.setdefault(outcome.status, []).append(outcome.task)
    listed = {status: f": {', '.join(tasks)}" for status, tasks in names.items() if len(tasks) <= _LISTED}
    return "; ".join(f"{len(tasks)} {status}{listed.get(status, '')}" for status, tasks in sorted(names.items()))
