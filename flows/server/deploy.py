"""Deploying the flows: from the tasks' schedules to deployments by Prefect's REST API. Imports no Prefect and no flow.

Every call deploys every flow, so a deployment whose entry point has moved since gets the new one. A schedule keeps its
id and its paused state because of its slug, and a deployment its paused state because none is sent. What Prefect leaves
to its user is done here: a schedule whose slug no task has, or none, is removed.
"""

import ast
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows import requests
from flows.server.api import call, expect
from flows.server.automations import HEARTBEAT_SECONDS, install_automations
from flows.server.environment import POOL, TRAINING_QUEUE
from flows.server.schedules import (
    check_schedules,
    distinct_schedules,
    keep_pauses,
    list_due_runs,
    remove_schedules,
    restore_due_runs,
    tell_edits,
)
from ptpipeline.errors import SettingsError
from ptpipeline.records.base import is_name
from ptpipeline.settings import Settings
from ptpipeline.task.folder import task_files
from ptpipeline.task.task import Task

FLOWS = (
    *("ingest", "tune", "nightly", "gang", "promote", "approve", "reject", "rollback", "reconcile"),
    *("watch-sources", "alarm"),
)
# A person's edit in the MLflow UI is judged by the second of two polls.
EVERY_FIVE_MINUTES = {"cron": "*/5 * * * *", "timezone": "UTC"}
WATCHED = ("reconcile", "alarm")  # on a local stack its watcher does their work, which as a run costs six seconds
POLLS = {"reconcile": "poll", "watch-sources": "watch", "alarm": "alarm"}  # the slugs of their schedules
SCHEDULED = ("nightly", *POLLS)  # the flows whose schedules are ptpipeline's; those of the others are people's
TRAINING = ("tune", "gang")  # the flows that train wherever they run; a night gives that away if it can
LOGGERS = ("ptpipeline", "registry", "mlflow")  # Prefect shows their lines on the run's page

_RUN_ENVIRONMENT = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(LOGGERS),
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_CLIENT_MAX_RETRIES": "8",  # each after twice the time of the last: a server may be away for eight minutes
}
_WORKERS_FOLDER = "{{ $PWD }}"  # Prefect leaves it to the process that runs the flow


def deploy(settings: Settings, tasks: Sequence[Task], shared: bool = False, gpus: int = 0) -> None:
    """Deploy all flows to the Prefect server of the settings.

    Runs start in this folder; if the server is `shared`, in the folder that the worker of each was started in. Those
    that train ask for `gpus`, which only jobs of Kubernetes heed. Raises SettingsError if there is no server or it
    refuses the deployments, NotFound if it has no work pool, ServiceUnavailable if it does not answer.
    """
    api = settings.prefect
    if api is None:
        raise SettingsError(
            "PTP_PREFECT is not set: `ptp up` starts a local Prefect server, or set it to the API address of yours"
        )
    call("GET", f"{api}/health")
    call("GET", f"{api}/work_pools/{POOL}")
    before = read_deployments(api)
    due = list_due_runs(api, before["nightly"]) if "nightly" in before else []
    folder, names = _WORKERS_FOLDER if shared else str(Path.cwd()), _declared_names(settings)
    slugs = {flow: {one["slug"] for one in _schedules(flow, tasks, shared)} for flow in SCHEDULED}
    for flow in FLOWS:
        wanted, known = describe_deployment(flow, tasks, names, folder, gpus), before.get(flow)
        if known and flow in SCHEDULED:
            tell_edits(known, wanted)
            # beside one without a slug Prefect would replace all, the paused ones too
            remove_schedules(api, known, [one for one in known["schedules"] if one["slug"] is None])
        _put(api, flow, wanted, known)
    after = read_deployments(api)
    if "nightly" in before:
        keep_pauses(api, before["nightly"], after["nightly"], slugs["nightly"])
    for flow in SCHEDULED:
        others = [one for one in after[flow]["schedules"] if one["slug"] not in slugs[flow]]
        reason = "the stack's watcher does its work" if flow in WATCHED and not shared else "no task file has it"
        remove_schedules(api, after[flow], others, reason)
    restore_due_runs(api, due)
    for flow in POLLS:
        _free_leaked_slot(api, after[flow])
    install_automations(api, after)


def find_outdated(settings: Settings, tasks: Sequence[Task], gpus: int = 0) -> dict[str, str]:
    """Return what Prefect lacks of what `deploy` to a shared server would make there, by deployment; changes nothing.

    Raises ServiceUnavailable if Prefect does not answer, SettingsError if it refuses this client.
    """
    names, known, outdated = _declared_names(settings), read_deployments(str(settings.prefect)), {}
    for flow in FLOWS:
        wanted = describe_deployment(flow, tasks, names, _WORKERS_FOLDER, gpus)
        if flow not in known:
            outdated[wanted["name"]] = "is missing"
        elif fields := _differing_fields(wanted, known[flow]):
            outdated[wanted["name"]] = f"has another {', another '.join(fields)}"
    return outdated


def read_deployments(api: str) -> dict[str, dict[str, Any]]:
    """Return the deployments of the flows that the server has, by flow."""
    names = {f"ptp-{flow}": flow for flow in FLOWS}
    query = {"flows": {"name": {"any_": list(FLOWS)}}, "deployments": {"name": {"any_": list(names)}}}
    found = call("POST", f"{api}/deployments/filter", query)
    for deployment in found:
        expect(deployment, name=str, global_concurrency_limit=dict | None, concurrency_options=dict | None)
        check_schedules(deployment)
    return {names[deployment["name"]]: deployment for deployment in found if deployment["name"] in names}


# ---------------------------------------------------------------- one deployment


def describe_deployment(
    flow: str, tasks: Sequence[Task], names: Sequence[str], folder: str, gpus: int = 0
) -> dict[str, Any]:
    """Return the deployment of a flow as Prefect's REST API takes it.

    `nightly` runs on the tasks' schedules, `reconcile` and `alarm` every five minutes if the server is shared (its
    `folder` is that of each worker), and `watch-sources` if a task is watched; the others run on request, of the tasks
    with these `names`.
    """
    trains, polls = flow in TRAINING, flow in POLLS
    return {
        "name": f"ptp-{flow}",
        "description": _describe(flow),
        "version": importlib.metadata.version("ptpipeline"),
        "entrypoint": entrypoint_of(flow),
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": folder}}],
        "work_pool_name": POOL,
        "work_queue_name": TRAINING_QUEUE if trains else "default",
        "job_variables": {"env": dict(_RUN_ENVIRONMENT)} | ({"gpus": gpus} if trains and gpus else {}),
        # late runs and runs at the same time would all do the same work; a night has no limit of Prefect's, whose slot
        # may leak: its own lease does it (flows/turn.py)
        "concurrency_limit": 1 if polls else None,
        "concurrency_options": {"collision_strategy": "CANCEL_NEW"} if polls else None,
        "schedules": _schedules(flow, tasks, folder == _WORKERS_FOLDER),
        "parameter_openapi_schema": narrow_schema(make_schema(flow), names),
        "enforce_parameter_schema": True,
    }


def entrypoint_of(flow: str) -> str:
    """Return the module and the function of a flow."""
    module = flow.replace("-", "_")
    return f"flows.{module}.{module}"


def make_schema(flow: str) -> dict[str, Any]:
    """Return the JSON schema of a flow's parameters, as Prefect makes it of the flow's function."""
    name = f"{flow.title().replace('-', '')}Request"
    record = getattr(requests, name)
    schema = record.model_json_schema()
    request: dict[str, Any] = {"$ref": f"#/definitions/{name}", "position": 0, "title": "request"}
    whole = {"title": "Parameters", "type": "object", "properties": {"request": request}, "definitions": {name: schema}}
    if schema.get("required"):
        return {**whole, "required": ["request"]}
    request["default"] = record().model_dump(mode="json")
    return whole


def narrow_schema(whole: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a schema by which Prefect refuses, before there is a run, what the flow does not take: parameters that it
    does not have, and tasks without a file. What is rolled back or reconciled needs no file.
    """
    [(title, definition)] = whole["definitions"].items()
    fields, name = dict(definition["properties"]), {"type": "string", "enum": list(names)}
    if "tasks" in fields and names:
        fields["tasks"] = {**fields["tasks"], "anyOf": [{"type": "array", "items": name}, {"type": "null"}]}
    elif "version" in fields and names:
        fields["task"] = {**fields["task"], **name}
    return {**whole, "additionalProperties": False, "definitions": {title: {**definition, "properties": fields}}}


def _schedules(flow: str, tasks: Sequence[Task], shared: bool) -> list[dict[str, Any]]:
    if flow == "nightly":
        return [
            {
                "slug": slug,
                "schedule": {"cron": schedule.cron, "timezone": schedule.timezone},
                "parameters": {"request": {"schedule": slug}},
            }
            for slug, schedule in distinct_schedules(tasks).items()
        ]
    if flow not in POLLS or (flow == "watch-sources" and not any(task.watch for task in tasks)):
        return []
    if flow in WATCHED and not shared:
        return []
    return [{"slug": POLLS[flow], "schedule": dict(EVERY_FIVE_MINUTES), "parameters": {}}]


def _describe(flow: str) -> str:
    """Return the docstring of a flow's function, which is not imported: that takes seconds."""
    module = entrypoint_of(flow).split(".")[1]
    tree = ast.parse((Path(requests.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == module)
    return ast.get_docstring(function) or ""


def _put(api: str, flow: str, wanted: dict[str, Any], known: dict[str, Any] | None) -> None:
    if known:  # an empty list of schedules would remove those that a person added
        sent = {name: value for name, value in wanted.items() if name != "name" and (value or name != "schedules")}
        call("PATCH", f"{api}/deployments/{known['id']}", sent)
    else:
        id_ = call("POST", f"{api}/flows/", {"name": flow})["id"]
        call("POST", f"{api}/deployments/", {**wanted, "flow_id": id_})


def _free_leaked_slot(api: str, deployment: dict[str, Any]) -> None:
    """Free the slot of a poll that no run holds, else Prefect cancels each later run: it forgets whose a slot is if its
    database is restored from a copy, or its server ends at the wrong time.
    """
    limit = deployment["global_concurrency_limit"]
    if not limit or not limit["active_slots"]:
        return
    holding = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}},
    }
    if not call("POST", f"{api}/flow_runs/filter", holding):
        call("PATCH", f"{api}/v2/concurrency_limits/{limit['id']}", {"active_slots": 0})


def _differing_fields(wanted: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Return the fields of a deployment that are not as wanted, as a person calls them."""
    pairs = {
        "description": (wanted["description"], known["description"]),
        "version of ptpipeline": (wanted["version"], known["version"]),
        "entry point": (wanted["entrypoint"], known["entrypoint"]),
        "folder": (wanted["pull_steps"], known["pull_steps"]),
        "work pool": (wanted["work_pool_name"], known["work_pool_name"]),
        "work queue": (wanted["work_queue_name"], known["work_queue_name"]),
        "set of job variables": (wanted["job_variables"], known["job_variables"]),
        "limit of runs": (wanted["concurrency_limit"], (known["global_concurrency_limit"] or {}).get("limit")),
        "strategy beyond that limit": (
            (wanted["concurrency_options"] or {}).get("collision_strategy"),
            (known["concurrency_options"] or {}).get("collision_strategy"),
        ),
        "set of schedules": (
            [_plain_schedule(one) for one in wanted["schedules"]],
            sorted((_plain_schedule(one) for one in known["schedules"]), key=lambda one: str(one["slug"])),
        ),
        "form": (wanted["parameter_openapi_schema"], known["parameter_openapi_schema"]),
    }
    return [field for field, (here, there) in pairs.items() if here != there]


def _plain_schedule(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "slug": one["slug"],
        "cron": one["schedule"].get("cron"),
        "timezone": one["schedule"].get("timezone"),
        "parameters": one.get("parameters") or {},
    }


def _declared_names(settings: Settings) -> list[str]:
    """Return the names of all task files: a run of a broken one tells what is wrong with it."""
    return [path.stem for path in task_files(settings.tasks) if is_name(path.stem)]
