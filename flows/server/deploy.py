"""Deploying the flows: renders the deployments with the tasks' schedules and hands them to Prefect. Imports no Prefect.

A schedule keeps its id and its paused state over deployments because of its slug; a slug that no task has any more is
removed, and a deployment that somebody paused is paused again, both of which Prefect leaves to its user.
"""

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.local.servers import POOL, client_environment
from flows.server.api import call
from flows.server.schedules import distinct_schedules
from ptpipeline.errors import NotFound, SettingsError
from ptpipeline.settings import Settings
from ptpipeline.task.task import Task

FLOWS = ("ingest", "tune", "nightly", "promote", "rollback", "reconcile")
POLL = {
    "slug": "poll",
    "cron": "*/5 * * * *",
    "timezone": "UTC",
}  # a person's edit in the MLflow UI is judged by the second
LOGGERS = ("ptpipeline", "registry", "mlflow")  # their lines reach the run's page

_HEADER = """\
# The deployments of ptpipeline's flows, as rendered from the task files' schedules (flows/server/deploy.py).
# `prefect --no-prompt deploy --all --prefect-file deploy/prefect.yaml` in the project folder deploys the shipped tasks.
"""


def rendered(tasks: Sequence[Task]) -> str:
    """prefect.yaml for these tasks: one deployment per flow, the nightly one with the tasks' schedules, the reconcile
    polling.
    """
    document = {"name": "ptpipeline", "deployments": [_deployment(name, tasks) for name in FLOWS]}
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 200
    yaml.dump(document, text)
    return _HEADER + text.getvalue()


def deploy(settings: Settings, tasks: Sequence[Task]) -> None:
    """Deploy all flows to the Prefect server of the settings.

    Raises SettingsError where there is none or it refuses the deployments, ServiceUnavailable where it does not answer.
    """
    if settings.prefect is None:
        raise SettingsError("PTP_PREFECT is not set: `ptp up` starts a local Prefect server, or name yours")
    call("GET", f"{settings.prefect}/health")
    paused = [found["id"] for found in _deployed(settings.prefect) if found["paused"]]
    path = settings.home / "prefect.yaml"
    path.write_text(rendered(tasks), encoding="utf-8")
    _run_prefect(path, client_environment(settings.home, settings.prefect))
    for found in _deployed(settings.prefect):
        if found["id"] in paused:
            call("POST", f"{settings.prefect}/deployments/{found['id']}/pause_deployment")
        _refuse_unknown_parameters(settings.prefect, found)
        if found["name"] == "ptp-nightly":
            _remove_schedules(settings.prefect, found, set(distinct_schedules(tasks)))


def _deployment(name: str, tasks: Sequence[Task]) -> dict[str, Any]:
    deployment: dict[str, Any] = {
        "name": f"ptp-{name}",
        "entrypoint": f"flows.{name}.{name}",
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "{{ $PWD }}"}}],
        "work_pool": {"name": POOL, "job_variables": {"env": {"PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(LOGGERS)}}},
    }
    if name == "nightly":
        deployment["concurrency_limit"] = 1
        deployment["schedules"] = [
            {
                "slug": slug,
                "cron": schedule.cron,
                "timezone": schedule.timezone,
                "parameters": {"request": {"schedule": slug}},
            }
            for slug, schedule in distinct_schedules(tasks).items()
        ]
    if name == "reconcile":  # runs that a worker missed, or that overtake each other, would all do the same
        deployment["concurrency_limit"] = {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        deployment["schedules"] = [POLL]
    return deployment


def _run_prefect(path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise SettingsError(f"Prefect does not take {path}: {' | '.join(lines[-5:])}")


def _deployed(api: str) -> list[dict[str, Any]]:
    found = []
    for name in FLOWS:
        try:
            found.append(call("GET", f"{api}/deployments/name/{name}/ptp-{name}"))
        except NotFound:
            continue
    return found


def _refuse_unknown_parameters(api: str, deployment: dict[str, Any]) -> None:
    """Prefect checks a parameter's value against the flow's schema but lets parameters through that the flow
    has not.
    """
    schema = {**deployment["parameter_openapi_schema"], "additionalProperties": False}
    call("PATCH", f"{api}/deployments/{deployment['id']}", {"parameter_openapi_schema": schema})


def _remove_schedules(api: str, deployment: dict[str, Any], slugs: set[str]) -> None:
    for schedule in deployment["schedules"]:
        if schedule["slug"] not in slugs:
            call("DELETE", f"{api}/deployments/{deployment['id']}/schedules/{schedule['id']}")
