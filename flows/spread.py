"""Several workers: each gang of a night is one run of the deployment `ptp-gang`, and the night waits for all of them.

A run whose worker died is started again: Prefect retries none, and the gang goes on from its checkpoint. The key of a
run is made of night, gang and attempt, so that a night that was itself started again finds the runs that it gave away.
Imports no Prefect.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import stamina

from flows.requests import GangRequest
from flows.server.api import FINAL, call, expect
from flows.server.environment import POOL
from flows.server.trigger import trigger
from flows.stages.chain import Night
from flows.stages.outcome import Outcome
from flows.stages.plan import Plan, identify
from ptpipeline.errors import NotFound, PtpError, ServiceUnavailable, Transient
from ptpipeline.foreign import parse_json, parsing

OUTCOMES = "outcomes"  # the type of the artifact that a gang's run leaves for the night
MOST_ATTEMPTS = 4
GANGS_PER_WORKER = 2  # so that a worker that is added in the night, or is done early, finds one to take
_POLL_SECONDS = 5.0
_PENDING_SECONDS = 900.0  # longer than an image is pulled

log = logging.getLogger("ptpipeline.flows")


class Given(NamedTuple):
    """A gang that a worker trains: its tasks, the run, how often it was started, and since when it was seen as pending,
    in seconds of this process: the server's clock may be another.
    """

    plans: Sequence[Plan]
    run: str
    attempt: int
    pending: float | None = None


def count_parts(api: str) -> int | None:
    """Return among how many gangs a night is divided, each a run of its own; None to train in the night's own process.

    One worker of processes loses nothing by that, nor if the server does not tell. Where each run is a container or a
    job, what trains is given away, because only its runs ask for a GPU.
    """
    try:
        kind = call("GET", f"{api}/work_pools/{POOL}")["type"]
        workers = call("POST", f"{api}/work_pools/{POOL}/workers/filter", {})
    except (NotFound, ServiceUnavailable):
        return None
    online = sum(worker["status"] == "ONLINE" for worker in workers)
    return GANGS_PER_WORKER * max(online, 1) if online > 1 or kind != "process" else None


def spread(api: str, night: str, request: GangRequest, this_run: str, gangs: Sequence[Sequence[Plan]]) -> Night:
    """Give each gang to a worker and wait until all are done; return the outcomes of their tasks.

    `night` names the night, `request` says how they run. A server that is away is asked again, for ten minutes. A gang
    that cannot be given or asked for ends with that sentence, and alone. If a person cancels `this_run`, so are they.
    """
    done, running = Night({}, {}), list[Given]()
    try:
        for plans in gangs:
            with _isolated(plans, done):
                running.append(_give(api, night, request, plans, 1))
        while running:
            for given in list(running):
                goes_on = list[Given]()
                with _isolated(given.plans, done):
                    goes_on = _follow(api, night, request, given, done)
                running[running.index(given) : running.index(given) + 1] = goes_on
            if running:
                time.sleep(_POLL_SECONDS)
    except BaseException:
        _cancel_with(api, this_run, running)
        raise
    return done


@contextmanager
def _isolated(plans: Sequence[Plan], done: Night) -> Iterator[None]:
    try:
        yield
    except PtpError as error:
        done.errors.update({plan.task: str(error) for plan in plans})


def _follow(api: str, night: str, request: GangRequest, given: Given, done: Night) -> list[Given]:
    """Look at a gang's run; return what to wait for on its behalf, nothing if it is done."""
    run = _ask(api, f"flow_runs/{given.run}")
    if run["state_type"] == "PENDING":
        since = time.monotonic() if given.pending is None else given.pending
        if time.monotonic() - since > _PENDING_SECONDS:
            state = {"type": "CRASHED", "name": "Crashed", "message": "its worker took it and never began"}
            _ask(api, f"flow_runs/{given.run}/set_state", {"state": state})
        return [given._replace(pending=since)]
    if run["state_type"] not in FINAL:
        return [given]
    if run["state_type"] == "CRASHED" and given.attempt < MOST_ATTEMPTS and not _was_cancelled(api, given.run):
        log.warning("the worker of %s died; its gang goes on elsewhere", _name(given.plans))
        return [_give(api, night, request, given.plans, given.attempt + 1)]
    _collect(api, given, run, done)
    return []


def _was_cancelled(api: str, run: str) -> bool:
    """Whether a person cancelled the run: one that ends in a training is Crashed for a moment."""
    return any(state["type"] == "CANCELLING" for state in _ask(api, f"flow_run_states/?flow_run_id={run}"))


def _cancel_with(api: str, this_run: str, running: Sequence[Given]) -> None:
    """Cancel the gangs if a person cancelled the night; an eviction of its process leaves them at work."""
    with suppress(PtpError):
        if call("GET", f"{api}/flow_runs/{this_run}")["state_type"] in ("CANCELLING", "CANCELLED"):
            for given in running:
                call("POST", f"{api}/flow_runs/{given.run}/set_state", {"state": {"type": "CANCELLING"}})


def _give(api: str, night: str, request: GangRequest, plans: Sequence[Plan], attempt: int) -> Given:
    own = request.model_copy(update={"tasks": [plan.task for plan in plans]})
    key = f"{night} {identify(plans)} {attempt}"
    for again in _retry():
        with again:
            run = trigger(api, "gang", own, key)
    log.info("%s: given to a worker as run %s", _name(plans), run)
    return Given(plans, run, attempt)


def _collect(api: str, given: Given, run: dict[str, Any], done: Night) -> None:
    """Add the outcome of each task of a run that ended; one that left none has the run's last word as its error."""
    body = {"artifacts": {"flow_run_id": {"any_": [given.run]}, "type": {"any_": [OUTCOMES]}}}
    what, again = f"the outcomes of flow run {given.run}", "run the night again"
    found: dict[str, Any] = {}
    for artifact in _ask(api, "artifacts/filter", body):
        expect(artifact, data=str)
        found = parse_json(artifact["data"].encode(), what, again)
    with parsing(what, again):
        done.outcomes.update({name: Outcome.model_validate(row) for name, row in found.get("outcomes", {}).items()})
        done.errors.update(found.get("errors", {}))
    expect(run, state=dict | None)
    for plan in given.plans:
        if plan.task not in done.outcomes and plan.task not in done.errors:
            message = (run.get("state") or {}).get("message") or "it left no outcome"
            done.errors[plan.task] = f"its run {given.run} ended {run['state_type']}: {message}"


def _ask(api: str, path: str, body: Any = None) -> Any:
    answer: Any = None
    for again in _retry():
        with again:
            answer = call("POST" if body else "GET", f"{api}/{path}", body)
    return answer


def _retry() -> Any:
    return stamina.retry_context(on=Transient, attempts=None, timeout=600, wait_initial=1.0, wait_max=30.0)


def _name(plans: Sequence[Plan]) -> str:
    return ", ".join(plan.task for plan in plans)
