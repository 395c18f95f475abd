"""What somebody did in Prefect that keeps runs from starting: what is paused, removed, or takes no more runs. Imports
no Prefect.
"""

from collections.abc import Iterator
from typing import Any

from flows.server.api import call, expect
from flows.server.automations import RESUMED, install_automations
from flows.server.deploy import FLOWS, read_deployments
from flows.server.environment import POOL
from ptpipeline.errors import NotFound

_GONE = f"the work pool {POOL} was removed in Prefect, so no run starts: `ptp up` (or `ptp bootstrap`) brings it back"


def list_pauses(api: str) -> list[str]:
    """Return what keeps scheduled runs from starting, one sentence each, and what to do.

    Raises ServiceUnavailable if Prefect does not answer, SettingsError if it refuses this client.
    """
    pool, deployments = _find_pool(api), read_deployments(api)
    return [
        *([_GONE] if pool is None else _look_at_pool(api, pool)),
        *_look_at_deployments(deployments),
        *_look_at_automations(api, deployments),
    ]


def explain_wait(api: str, run: dict[str, Any]) -> str | None:
    """Return why no worker takes a scheduled run, in one sentence; None if nothing speaks against it.

    Raises ServiceUnavailable if Prefect does not answer, SettingsError if it refuses this client.
    """
    if run["work_pool_name"] is None:
        return f"{_GONE}; then start this run again, which belongs to none"
    expect(run, state=dict)
    if run["state"]["name"] == "AwaitingConcurrencySlot":
        return "the limit of runs of its deployment is reached: it waits until another run has ended"
    if (pool := _find_pool(api)) is None:
        return _GONE
    for reason in _look_at_pool(api, pool, str(run["work_queue_name"])):
        return reason
    workers = call("POST", f"{api}/work_pools/{POOL}/workers/filter", {})
    if not any(worker["status"] == "ONLINE" for worker in workers):
        return f"no worker of the work pool {POOL} is online: look at `ptp status`, or start one"
    limit = pool["concurrency_limit"]
    return (
        None if limit is None else f"the work pool {POOL} takes at most {limit} runs at once: it waits for the others"
    )


def _find_pool(api: str) -> dict[str, Any] | None:
    try:
        pool: dict[str, Any] = call("GET", f"{api}/work_pools/{POOL}")
    except NotFound:
        return None
    return pool


def _look_at_pool(api: str, pool: dict[str, Any], only: str | None = None) -> Iterator[str]:
    """Yield why the work pool, or a queue of it or `only` that one, gives no run to a worker."""
    yield from _describe_pause(f"work pool {POOL}", pool)
    for queue in call("POST", f"{api}/work_pools/{POOL}/queues/filter", {}):
        if only in (None, queue["name"]):
            yield from _describe_pause(f"work queue {queue['name']} of the work pool {POOL}", queue)


def _describe_pause(name: str, found: dict[str, Any]) -> Iterator[str]:
    if found["is_paused"]:
        yield f"the {name} is paused in Prefect: its runs wait until somebody resumes it there"
    elif found["concurrency_limit"] == 0:
        yield f"the {name} has a limit of 0 runs in Prefect: its runs wait until somebody raises it there"


def _look_at_deployments(deployments: dict[str, dict[str, Any]]) -> Iterator[str]:
    for flow in FLOWS:
        name, deployment = f"ptp-{flow}", deployments.get(flow)
        if deployment is None or deployment["work_pool_name"] is None:
            what = "deployment" if deployment is None else "work pool of the deployment"
            yield f"the {what} {name} was removed in Prefect: `ptp up` (or `ptp bootstrap`) brings it back"
        elif deployment["paused"] and deployment["schedules"]:
            yield f"the deployment {name} is paused in Prefect: none of its schedules starts a run"
        else:
            for schedule in deployment["schedules"]:
                if not schedule["active"]:
                    yield f"the schedule {schedule['slug']} of {name} is paused in Prefect: it starts no run"


def _look_at_automations(api: str, deployments: dict[str, dict[str, Any]]) -> Iterator[str]:
    if RESUMED not in deployments:  # which they name
        return
    for name in install_automations(api, deployments, dry=True):
        yield f"the automation {name!r} was removed or changed in Prefect: `ptp up` (or `ptp bootstrap`) brings it back"
    for automation in call("POST", f"{api}/automations/filter", {"limit": 200}):
        if automation["name"].startswith("ptp: ") and not automation["enabled"]:
            yield f"the automation {automation['name']!r} is paused in Prefect: dead runs stay as they are"
