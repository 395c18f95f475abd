"""Deploying the flows: renders deployments with the tasks' schedules, passes them to Prefect. Imports no Prefect.

Every call deploys every flow, so a deployment whose entry point has moved since gets the new one. A schedule keeps its
id and its paused state because of its slug. What Prefect leaves to its user is done here: a schedule whose slug no task
has any more is removed, and a deployment that was paused is paused again.
"""

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.server.api import call
from flows.server.automations import HEARTBEAT_SECONDS, install_automations
from flows.server.environment import POOL, client_environment
from flows.server.schedules import distinct_schedules, keep_pauses, list_due_runs, restore_due_runs
from ptpipeline.errors import NotFound, SettingsError
from ptpipeline.private import private_files
from ptpipeline.records.base import is_name
from ptpipeline.settings import Settings
from ptpipeline.task.folder import task_files
from ptpipeline.task.task import Task

FLOWS = (
    *("ingest", "tune", "nightly", "gang", "promote", "approve", "reject", "rollback", "reconcile"),
    *("watch-sources", "alarm"),
)
# A person's edit in the MLflow UI is judged by the second of two polls.
POLL = {"slug": "poll", "cron": "*/5 * * * *", "timezone": "UTC"}
WATCH = {"slug": "watch", "cron": "*/5 * * * *", "timezone": "UTC"}
ALARM = {"slug": "alarm", "cron": "*/5 * * * *", "timezone": "UTC"}
LOGGERS = ("ptpipeline", "registry", "mlflow")  # Prefect shows their lines on the run's page

_RUN_ENVIRONMENT = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(LOGGERS),
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_CLIENT_MAX_RETRIES": "8",  # each after twice the time of the last: a server may be away for eight minutes
}

_HEADER = """\
# The deployments of ptpipeline's flows, as rendered from the task files' schedules (flows/server/deploy.py).
# `prefect --no-prompt deploy --all --prefect-file deploy/prefect.yaml` in the project folder deploys the shipped tasks.
"""


def render(tasks: Sequence[Task]) -> str:
    """Return prefect.yaml for these tasks: one deployment per flow.

    `nightly` runs on the tasks' schedules, `reconcile` every five minutes, and so does `watch-sources` if a task is
    watched; the others run on request.
    """
    document = {"name": "ptpipeline", "deployments": [_deployment(name, tasks) for name in FLOWS]}
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 200
    yaml.dump(document, text)
    return _HEADER + text.getvalue()


def deploy(settings: Settings, tasks: Sequence[Task]) -> None:
    """Deploy all flows to the Prefect server of the settings.

    Raises SettingsError if there is none or it refuses the deployments, ServiceUnavailable if it does not answer.
    """
    if settings.prefect is None:
        raise SettingsError(
            "PTP_PREFECT is not set: `ptp up` starts a local Prefect server, or set it to the API address of yours"
        )
    call("GET", f"{settings.prefect}/health")
    before = {deployment["id"]: deployment for deployment in _read_deployments(settings.prefect)}
    nights = [deployment for deployment in before.values() if deployment["name"] == "ptp-nightly"]
    due = [run for night in nights for run in list_due_runs(settings.prefect, night)]
    path = settings.home / "prefect.yaml"
    with private_files():
        path.write_text(render(tasks), encoding="utf-8")
    _run_prefect(path, client_environment(settings.home, settings.prefect))
    for deployment in _read_deployments(settings.prefect):
        earlier = before.get(deployment["id"])
        if earlier and earlier["paused"]:
            call("POST", f"{settings.prefect}/deployments/{deployment['id']}/pause_deployment")
        _narrow_parameters(settings.prefect, deployment, _declared_names(settings))
        if deployment["name"] == "ptp-nightly":
            slugs = set(distinct_schedules(tasks))
            if earlier:
                keep_pauses(settings.prefect, earlier, deployment, slugs)
            _remove_other_schedules(settings.prefect, deployment, slugs)
        if deployment["name"] == "ptp-watch-sources" and not any(task.watch for task in tasks):
            _remove_other_schedules(settings.prefect, deployment, set())
    restore_due_runs(settings.prefect, due)
    install_automations(settings.prefect)


def _deployment(name: str, tasks: Sequence[Task]) -> dict[str, Any]:
    deployment: dict[str, Any] = {
        "name": f"ptp-{name}",
        "entrypoint": entrypoint_of(name),
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "{{ $PWD }}"}}],
        "work_pool": {"name": POOL, "job_variables": {"env": dict(_RUN_ENVIRONMENT)}},
    }
    if name == "nightly":  # no limit of Prefect's: a slot may leak, and the night's own lease does it (flows/turn.py)
        deployment["schedules"] = [
            {
                "slug": slug,
                "cron": schedule.cron,
                "timezone": schedule.timezone,
                "parameters": {"request": {"schedule": slug}},
            }
            for slug, schedule in distinct_schedules(tasks).items()
        ]
    if name in ("reconcile", "alarm"):  # late runs and runs at the same time would all do the same work
        deployment["concurrency_limit"] = {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        deployment["schedules"] = [POLL if name == "reconcile" else ALARM]
    if name == "watch-sources":
        deployment["concurrency_limit"] = {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        deployment["schedules"] = [WATCH] if any(task.watch for task in tasks) else []
    return deployment


def entrypoint_of(name: str) -> str:
    """Return the module and the function of a flow."""
    module = name.replace("-", "_")
    return f"flows.{module}.{module}"


def _run_prefect(path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise SettingsError(f"Prefect refuses the deployments of {path}: {' | '.join(lines[-5:])}")


def _read_deployments(api: str) -> list[dict[str, Any]]:
    deployments = []
    for name in FLOWS:
        try:
            deployments.append(call("GET", f"{api}/deployments/name/{name}/ptp-{name}"))
        except NotFound:
            continue
    return deployments


def _declared_names(settings: Settings) -> list[str]:
    """Return the names of all task files: a run of a broken one tells what is wrong with it."""
    return [path.stem for path in task_files(settings.tasks) if is_name(path.stem)]


def _narrow_parameters(api: str, deployment: dict[str, Any], names: list[str]) -> None:
    """Let Prefect refuse, before there is a run, parameters that the flow does not have and tasks without a file.

    By default it checks the types of the known parameters only. What is rolled back or reconciled needs no file.
    """
    schema = {**deployment["parameter_openapi_schema"], "additionalProperties": False}
    request = next(iter(schema["definitions"].values()))["properties"]
    name = {"type": "string", "enum": names}
    if "tasks" in request and names:
        request["tasks"] = {**request["tasks"], "anyOf": [{"type": "array", "items": name}, {"type": "null"}]}
    elif "version" in request and names:
        request["task"] = {**request["task"], **name}
    call("PATCH", f"{api}/deployments/{deployment['id']}", {"parameter_openapi_schema": schema})


def _remove_other_schedules(api: str, deployment: dict[str, Any], slugs: set[str]) -> None:
    for schedule in deployment["schedules"]:
        if schedule["slug"] not in slugs:
            call("DELETE", f"{api}/deployments/{deployment['id']}/schedules/{schedule['id']}")
