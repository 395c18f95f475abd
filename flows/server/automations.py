"""Automations of the Prefect server: what notices a dead worker and starts its run again. Imports no Prefect.

A flow run sends a heartbeat every HEARTBEAT_SECONDS. If none came for SILENT_SECONDS, the first automation sets the run
to Crashed; Prefect itself never does if the machine is gone, and never retries a crashed run. The second one starts the
run of a night again, with the same parameters: the ledger's leases keep it from working beside one that still lives,
and its gangs go on from their checkpoints.
"""

from collections.abc import Mapping
from typing import Any

from flows.server.api import call
from ptpipeline.errors import NotFound

HEARTBEAT_SECONDS = 30
SILENT_SECONDS = 80  # two heartbeats may be lost or late; with the server's granularity noticed within 120 s
MOST_RESUMES = 3  # how often the run of a night is started again because its worker died
RESUMED = "nightly"  # a night starts the runs of its gangs again itself; what a person asked for, the person does

_REQUEST = "(flow_run.parameters.get('request') or {})"
_RESUMES = f"({_REQUEST}.get('resumes') or 0) + 1"
_NIGHT = f"{_REQUEST}.get('night') or flow_run.id|string"
# A run that is cancelled in a training ends as Crashed for a moment, and one that is suspended may (flows.steps); the
# event tells what it was before.
_CANCELLED = "event.payload.get('initial_state', {}).get('type') in ['CANCELLING', 'PAUSED']"
_RESUMED_REQUEST = f"{{{{ dict({_REQUEST}, resumes={_RESUMES}, night={_NIGHT}, cancelled={_CANCELLED}) | tojson }}}}"


def install_automations(api: str, deployments: Mapping[str, Mapping[str, Any]], dry: bool = False) -> list[str]:
    """Bring the automations on the server at `api` to what this version defines, by name; return what was changed, or
    with `dry` would be.

    Heartbeats name the `deployments`, which are those of the flows on that server, by their ids. What a person paused
    stays paused. Raises ServiceUnavailable or SettingsError if the server does not take them, NotFound if the nightly
    flow is not deployed.
    """
    if RESUMED not in deployments:
        raise NotFound(f"Prefect at {api} has no deployment ptp-{RESUMED}: deploy the flows first, by `ptp up`")
    resources = {flow: f"prefect.deployment.{deployment['id']}" for flow, deployment in deployments.items()}
    known = {automation["name"]: automation for automation in call("POST", f"{api}/automations/filter", {"limit": 200})}
    changed = []
    for wanted in (_notice(sorted(resources.values())), _resume(resources[RESUMED])):
        installed = known.get(wanted["name"])
        if installed and _agrees(wanted, installed):
            continue
        changed.append(wanted["name"])
        if not dry and installed is None:
            call("POST", f"{api}/automations/", wanted)
        elif not dry and installed:
            call("PUT", f"{api}/automations/{installed['id']}", {**wanted, "enabled": installed["enabled"]})
    return changed


def _notice(deployments: list[str]) -> dict[str, Any]:
    """Whatever the state is called that a run ends with, it is an event; only silence means that it is dead."""
    return {
        "name": "ptp: a run without a heartbeat has crashed",
        "description": f"Sets a run of ptpipeline to Crashed if it sent nothing for {SILENT_SECONDS} s.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "after": ["prefect.flow-run.heartbeat"],
            "expect": ["prefect.flow-run.*"],
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {"prefect.resource.role": "deployment", "prefect.resource.id": deployments},
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": float(SILENT_SECONDS),
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "name": "Crashed",
                "message": f"it sent no heartbeat for {SILENT_SECONDS} s: its worker or its machine died",
            }
        ],
    }


def _resume(deployment: str) -> dict[str, Any]:
    return {
        "name": "ptp: a crashed night goes on",
        "description": f"Starts the run of a night again, at most {MOST_RESUMES} times, if its worker died; it goes on "
        "from the last checkpoint.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "after": [],
            "expect": ["prefect.flow-run.Crashed"],
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {"prefect.resource.role": "deployment", "prefect.resource.id": deployment},
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": 0.0,
        },
        "actions": [
            {
                "type": "run-deployment",
                "source": "inferred",
                "parameters": {
                    "request": {
                        "__prefect_kind": "json",
                        "value": {"__prefect_kind": "jinja", "template": _RESUMED_REQUEST},
                    }
                },
            }
        ],
    }


def _agrees(wanted: Any, found: Any) -> bool:
    """Whether all that is wanted is there; the server adds fields of its own, and orders sets as it likes."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            name == "enabled" or (name in found and _agrees(value, found[name])) for name, value in wanted.items()
        )
    if isinstance(wanted, list) and isinstance(found, list) and all(isinstance(item, str) for item in wanted + found):
        return sorted(wanted) == sorted(found)
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(wanted) == len(found)
            and all(_agrees(one, other) for one, other in zip(wanted, found, strict=True))
        )
    return bool(wanted == found)
