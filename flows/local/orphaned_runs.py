"""Orphaned flow runs, whose process is gone: set to Crashed, so that they do not hold a concurrency slot forever.

Prefect's worker reports a dead process. If the worker dies too (a power cut, `ptp down` during a run), nobody does, and
the run stays Running.
"""

from pathlib import Path

from flows.local.process import find_flow_runs
from flows.server.api import FINAL, call
from flows.server.environment import POOL
from ptpipeline.errors import NotFound, PtpError

_ACTIVE = ["RUNNING", "PENDING", "CANCELLING"]
_HELPERS = ("ptp-reconcile", "ptp-watch-sources", "ptp-alarm")  # deployments that only look, every few minutes


def end_orphaned_runs(home: Path, api: str, credential: str | None = None) -> list[str]:
    """Set the pool's active runs that have no process of this stack on this machine to Crashed; return their ids.

    `credential` is the server's `user:password`, by default that of PREFECT_API_AUTH_STRING.
    Call it only while no worker runs: only then is a run without a process certainly an orphan.
    """
    query = {"work_pools": {"name": {"any_": [POOL]}}, "flow_runs": {"state": {"type": {"any_": _ACTIVE}}}}
    try:
        active = [str(run["id"]) for run in call("POST", f"{api}/flow_runs/filter", query, credential)]
    except NotFound:
        return []
    orphans = sorted(set(active) - find_flow_runs(home).keys()) if active else []
    for run in orphans:
        state = {"type": "CRASHED", "name": "Crashed", "message": "its process ended together with the worker"}
        call("POST", f"{api}/flow_runs/{run}/set_state", {"state": state, "force": True}, credential)
    return orphans


def runs_at_work(home: Path, api: str, credential: str) -> list[str]:
    """Return the names of the runs that a process of this stack works on, but for those that may be ended at any time;
    of a run that Prefect does not tell of, its id.
    """
    names = []
    for run in sorted(find_flow_runs(home)):
        try:
            known = call("GET", f"{api}/flow_runs/{run}", credential=credential)
            deployment = call("GET", f"{api}/deployments/{known['deployment_id']}", credential=credential)["name"]
        except PtpError:
            names.append(run)
            continue
        if deployment not in _HELPERS and known["state_type"] not in FINAL:  # of an ended run the process ends soon
            names.append(str(known["name"]))
    return names
