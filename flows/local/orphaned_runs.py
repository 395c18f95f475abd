"""Flow runs whose process is gone: ended as Crashed, so that they hold no concurrency slot for ever.

Prefect's worker reports a dead process itself; when both die (a power cut, `ptp down` in mid-run) nobody does, and
the run stays Running.
"""

from pathlib import Path

import psutil

from flows.local.servers import POOL
from flows.server.api import call
from ptpipeline.errors import NotFound

_ACTIVE = ["RUNNING", "PENDING", "CANCELLING"]


def end_lost_runs(home: Path, api: str) -> list[str]:
    """Set the pool's active runs that have no process of this stack on this machine to Crashed; returns their ids.

    To be called while no worker runs: only then is a run without a process lost for certain.
    """
    query = {"work_pools": {"name": {"any_": [POOL]}}, "flow_runs": {"state": {"type": {"any_": _ACTIVE}}}}
    try:
        active = [str(run["id"]) for run in call("POST", f"{api}/flow_runs/filter", query)]
    except NotFound:
        return []
    lost = sorted(set(active) - _living(home)) if active else []
    for run in lost:
        state = {"type": "CRASHED", "name": "Crashed", "message": "its process ended together with the worker"}
        call("POST", f"{api}/flow_runs/{run}/set_state", {"state": state, "force": True})
    return lost


def _living(home: Path) -> set[str]:
    """Ids of the runs that a process of this stack still works on, though its worker may be gone."""
    found = set()
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if environment.get("PTP_HOME") == str(home):
            found.add(environment.get("PREFECT__FLOW_RUN_ID", ""))
    return found
