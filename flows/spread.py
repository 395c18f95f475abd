"""Several workers: each gang of a night is one run of the deployment `ptp-gang`, and the night waits for all of them.

A run whose worker died is started again: Prefect retries none, and the gang goes on from its checkpoint. The key of a
run is made of night, gang and attempt, so that a night that was itself started again finds the runs that it gave away.
Imports no Prefect.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import stamina

from flows.requests import GangRequest
from flows.server.api import call
from flows.server.environment import POOL
from flows.server.trigger import trigger
from flows.stages.chain import Night
from flows.stages.outcome import Outcome
from flows.stages.plan import Plan, identify
from ptpipeline.errors import NotFound, ServiceUnavailable, Transient
from ptpipeline.foreign import parse_json

OUTCOMES = "outcomes"  # the type of the artifact that a gang's run leaves for the night
MOST_ATTEMPTS = 4
GANGS_PER_WORKER = 2  # so that a worker that is added in the night, or is done early, finds one to take
_POLL_SECONDS = 5.0
_FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

log = logging.getLogger("ptpipeline.flows")


class Given(NamedTuple):
    """A gang that a worker trains: its tasks, the run, and how often it was started."""

    plans: Sequence[Plan]
    run: str
    attempt: int


def count_parts(api: str) -> int:
    """Return among how many gangs a night is divided: one if there is one worker, which loses nothing by that, or if
    the server does not tell.
    """
    try:
        workers = call("POST", f"{api}/work_pools/{POOL}/workers/filter", {})
    except (NotFound, ServiceUnavailable):
        return 1
    online = sum(worker["status"] == "ONLINE" for worker in workers)
    return GANGS_PER_WORKER * online if online > 1 else 1


def spread(api: str, night: str, request: GangRequest, gangs: Sequence[Sequence[Plan]]) -> Night:
    """Give each gang to a worker and wait until all are done; return the outcomes of their tasks.

    `night` names the night, `request` says how they run. A server that is away is asked again, for ten minutes.
    """
    done = Night({}, {})
    running = [_give(api, night, request, plans, 1) for plans in gangs]
    while running:
        waiting: list[Given] = []
        for given in running:
            run = _ask(api, f"flow_runs/{given.run}")
            if run["state_type"] not in _FINAL:
                waiting.append(given)
            elif run["state_type"] == "CRASHED" and given.attempt < MOST_ATTEMPTS:
                log.warning("the worker of %s died; its gang goes on elsewhere", _name(given.plans))
                waiting.append(_give(api, night, request, given.plans, given.attempt + 1))
            else:
                _collect(api, given, run, done)
        running = waiting
        if running:
            time.sleep(_POLL_SECONDS)
    return done


def _give(api: str, night: str, request: GangRequest, plans: Sequence[Plan], attempt: int) -> Given:
    own = request.model_copy(update={"tasks": [plan.task for plan in plans]})
    key = f"{night} {identify(plans)} {attempt}"
    for again in _retrying():
        with again:
            run = trigger(api, "gang", own, key)
    log.info("%s: given to a worker as run %s", _name(plans), run)
    return Given(plans, run, attempt)


def _collect(api: str, given: Given, run: dict[str, Any], done: Night) -> None:
    """Add the outcome of each task of a run that ended; one that left none has the run's last word as its error."""
    body = {"artifacts": {"flow_run_id": {"any_": [given.run]}, "type": {"any_": [OUTCOMES]}}}
    found: dict[str, Any] = {}
    for artifact in _ask(api, "artifacts/filter", body):
        found = parse_json(artifact["data"].encode(), f"the outcomes of flow run {given.run}", "run the night again")
    done.outcomes.update({name: Outcome.model_validate(row) for name, row in found.get("outcomes", {}).items()})
    done.errors.update(found.get("errors", {}))
    for plan in given.plans:
        if plan.task not in done.outcomes and plan.task not in done.errors:
            message = (run.get("state") or {}).get("message") or "it left no outcome"
            done.errors[plan.task] = f"its run {given.run} ended {run['state_type']}: {message}"


def _ask(api: str, path: str, body: Any = None) -> Any:
    answer: Any = None
    for again in _retrying():
        with again:
            answer = call("POST" if body else "GET", f"{api}/{path}", body)
    return answer


def _retrying() -> Any:
    return stamina.retry_context(on=Transient, attempts=None, timeout=600, wait_initial=1.0, wait_max=30.0)


def _name(plans: Sequence[Plan]) -> str:
    return ", ".join(plan.task for plan in plans)
