"""What Prefect lacks of the deployments, by a small server that holds them; and what its forms take."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fixtures.prompts import a_task
from flows import requests
from flows.server import bootstrap, deploy
from flows.server.bootstrap import Sight
from flows.server.deploy import FLOWS, find_outdated
from ptpipeline.settings import Settings
from ptpipeline.task.task import Schedule, Task
from tests.flows.server.test_prefect import Prefect, listening

Change = Callable[[dict[str, Any]], object]
NAMES = ["mood", "topic"]


def scheduled(name: str, cron: str) -> Task:
    return a_task(name).model_copy(update={"schedule": Schedule(cron=cron, timezone="UTC")})


TASKS = [scheduled("mood", "0 2 * * *"), scheduled("topic", "0 1 * * *")]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in NAMES:
        (tmp_path / f"{name}.yaml").write_text("[\n")  # broken ones too
    (tmp_path / "Not a name.yaml").touch()
    return Settings(home=tmp_path, tasks=tmp_path)


def a_schema(flow: str) -> dict[str, Any]:
    """The schema of the flow's parameters as Prefect makes it."""
    name = f"{flow.title().replace('-', '')}Request"
    return {"type": "object", "definitions": {name: getattr(requests, name).model_json_schema()}}


def as_held(flow: str) -> dict[str, Any]:
    """The deployment of a flow as Prefect holds it, with its schedules in an order of its own."""
    wanted = copy.deepcopy(deploy._deployment(flow, TASKS))
    pool, limit = wanted["work_pool"], wanted.get("concurrency_limit")
    schedules = [
        {
            "slug": one["slug"],
            "id": one["slug"],
            "active": True,
            "parameters": one.get("parameters", {}),
            "schedule": {"cron": one["cron"], "timezone": one["timezone"], "day_or": True},
        }
        for one in wanted.get("schedules", [])
    ]
    return {
        "id": flow,
        "name": wanted["name"],
        "entrypoint": wanted["entrypoint"],
        "pull_steps": wanted["pull"],
        "work_pool_name": pool["name"],
        "work_queue_name": pool.get("work_queue_name", "default"),
        "job_variables": pool["job_variables"],
        "global_concurrency_limit": {"limit": limit["limit"], "active_slots": 0} if limit else None,
        "concurrency_options": {"collision_strategy": limit["collision_strategy"]} if limit else None,
        "schedules": schedules[::-1],
        "parameter_openapi_schema": deploy._narrow_schema(a_schema(flow), NAMES),
    }


def answers(held: dict[str, dict[str, Any]]) -> Prefect:
    def tell(flow: str) -> Callable[[Any], tuple[int, Any]]:
        return lambda _: (200, held[flow])

    return Prefect({f"GET /deployments/name/{flow}/ptp-{flow}": tell(flow) for flow in held})


def outdated(settings: Settings, held: dict[str, dict[str, Any]], gpus: int = 0) -> dict[str, str]:
    with listening(answers(held)) as prefect:
        return find_outdated(settings.model_copy(update={"prefect": prefect.url}), TASKS, gpus)


def look(settings: Settings, held: dict[str, dict[str, Any]]) -> Sight:
    """What the piece of `ptp bootstrap` sees."""
    with listening(answers(held)) as prefect:
        pieces = bootstrap._prefect_pieces(
            settings.model_copy(update={"prefect": prefect.url}), TASKS, bootstrap.DEFAULT
        )
        return next(piece for piece in pieces if piece.name == "deployments").look()


ALL = {flow: as_held(flow) for flow in FLOWS}


def test_what_is_held_as_it_is_rendered_is_not_outdated(settings: Settings) -> None:
    assert outdated(settings, ALL) == {}
    assert look(settings, ALL) == Sight("there")


def test_a_deployment_that_is_missing_is_told(settings: Settings) -> None:
    assert outdated(settings, {flow: held for flow, held in ALL.items() if flow != "gang"}) == {
        "ptp-gang": "is missing"
    }
    assert look(settings, {}).found == "missing"
    changed = {"tune": {**ALL["tune"], "entrypoint": "flows.old"}}
    assert look(settings, changed).found == "differs"  # although the others are missing


def extend(held: dict[str, Any]) -> None:
    [request] = held["parameter_openapi_schema"]["definitions"].values()
    request["properties"]["more"] = {"type": "string"}


def loosen(held: dict[str, Any]) -> None:
    held["parameter_openapi_schema"]["additionalProperties"] = True


@pytest.mark.parametrize(
    ("flow", "change", "field"),
    [
        ("tune", lambda held: held.update(entrypoint="flows.old.tune"), "entry point"),
        ("tune", lambda held: held.update(pull_steps=[]), "folder"),
        ("tune", lambda held: held.update(work_pool_name="other"), "work pool"),
        ("tune", lambda held: held.update(work_queue_name="default"), "work queue"),
        ("tune", lambda held: held.update(job_variables={"env": {}}), "set of job variables"),
        ("tune", lambda held: held.update(global_concurrency_limit={"limit": 1}), "limit of runs"),
        ("alarm", lambda held: held.update(global_concurrency_limit=None), "limit of runs"),
        ("alarm", lambda held: held.update(concurrency_options=None), "strategy beyond that limit"),
        ("nightly", lambda held: held["schedules"].pop(), "set of schedules"),
        ("nightly", lambda held: held["schedules"][0]["schedule"].update(cron="0 3 * * *"), "set of schedules"),
        ("nightly", lambda held: held["schedules"][0].update(parameters={}), "set of schedules"),
        ("tune", loosen, "form"),
        ("tune", extend, "request"),
    ],
)
def test_each_field_that_differs_is_named(settings: Settings, flow: str, change: Change, field: str) -> None:
    held = copy.deepcopy(ALL)
    change(held[flow])
    assert outdated(settings, held) == {f"ptp-{flow}": f"has another {field}"}


def test_only_runs_that_train_ask_for_gpus(settings: Settings) -> None:
    another = "has another set of job variables"
    assert outdated(settings, ALL, gpus=1) == {"ptp-tune": another, "ptp-gang": another}


# ---------------------------------------------------------------- forms and schedules


@pytest.mark.parametrize(
    ("flow", "field", "narrowed"),
    [("nightly", "tasks", True), ("promote", "task", True), ("rollback", "task", False), ("reconcile", "task", False)],
)
def test_a_form_takes_the_tasks_that_have_a_file_where_one_is_needed(flow: str, field: str, narrowed: bool) -> None:
    whole = a_schema(flow)
    form = deploy._narrow_schema(whole, NAMES)
    [request] = form["definitions"].values()
    assert form["additionalProperties"] is False
    assert (str(NAMES) in str(request["properties"][field])) == narrowed
    [request] = deploy._narrow_schema(whole, [])["definitions"].values()
    assert "enum" not in str(request["properties"][field])  # without files none can be named


def test_schedules_that_no_task_has_are_removed_and_the_others_stay() -> None:
    removing = Prefect({"DELETE /deployments/d/schedules/id-old": lambda _: (204, b"")})
    held = {"id": "d", "schedules": [{"slug": slug, "id": f"id-{slug}"} for slug in ("old", "new")]}
    with listening(removing) as prefect:
        deploy._remove_other_schedules(prefect.url, held, {"new"})
    assert [asked for asked, _ in prefect.asked] == ["DELETE /deployments/d/schedules/id-old"]
