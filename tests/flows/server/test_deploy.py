"""What Prefect lacks of the deployments, by a small server that holds them; and what its forms take."""

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from benchmarks.fixtures.prompts import a_task
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


def as_held(flow: str) -> dict[str, Any]:
    """The deployment of a flow as Prefect holds it, with its schedules in an order of its own."""
    wanted = deploy.describe_deployment(flow, TASKS, NAMES, "{{ $PWD }}")
    schedules = [
        {**one, "id": one["slug"], "active": True, "schedule": {**one["schedule"], "day_or": True}}
        for one in wanted["schedules"]
    ]
    limit = wanted["concurrency_limit"]
    return {
        **copy.deepcopy(wanted),
        "id": flow,
        "concurrency_limit": None,  # Prefect tells it in the other place
        "global_concurrency_limit": {"limit": limit, "active_slots": 0} if limit else None,
        "schedules": schedules[::-1],
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


def test_what_is_held_as_it_is_described_is_not_outdated(settings: Settings) -> None:
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
        ("tune", extend, "form"),
        ("tune", lambda held: held.update(description="Train."), "description"),
        ("tune", lambda held: held.update(version="0.0.1"), "version of ptpipeline"),
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


@pytest.mark.parametrize("name", FLOWS)
def test_schema_and_description_are_those_that_prefect_makes_of_the_flow(name: str) -> None:
    module, _, function = deploy.entrypoint_of(name).rpartition(".")
    flow = getattr(importlib.import_module(module), function)
    assert flow.name == name
    assert deploy.make_schema(name) == parameter_schema(flow).model_dump(exclude_unset=True)
    assert deploy.describe_deployment(name, TASKS, NAMES, "/here")["description"] == flow.description


@pytest.mark.parametrize(
    ("flow", "field", "narrowed"),
    [("nightly", "tasks", True), ("promote", "task", True), ("rollback", "task", False), ("reconcile", "task", False)],
)
def test_a_form_takes_the_tasks_that_have_a_file_where_one_is_needed(flow: str, field: str, narrowed: bool) -> None:
    form = deploy.narrow_schema(deploy.make_schema(flow), NAMES)
    [request] = form["definitions"].values()
    assert form["additionalProperties"] is False
    assert (str(NAMES) in str(request["properties"][field])) == narrowed
    [request] = deploy.narrow_schema(deploy.make_schema(flow), [])["definitions"].values()
    assert "enum" not in str(request["properties"][field])  # without files none can be named


def test_sources_are_watched_on_a_schedule_only_if_a_task_asks_for_it() -> None:
    watched = TASKS[0].model_copy(update={"watch": True})
    assert deploy.describe_deployment("watch-sources", TASKS, NAMES, "/here")["schedules"] == []
    [schedule] = deploy.describe_deployment("watch-sources", [*TASKS, watched], NAMES, "/here")["schedules"]
    assert schedule["slug"] == "watch"


def test_a_schedule_is_sent_without_its_pause_which_is_the_servers() -> None:
    for flow in FLOWS:
        described = deploy.describe_deployment(flow, TASKS, NAMES, "/here")
        assert "paused" not in described
        assert all("active" not in schedule for schedule in described["schedules"])


def test_schedules_that_no_task_has_are_removed_and_the_others_stay() -> None:
    removing = Prefect({"DELETE /deployments/d/schedules/id-old": lambda _: (204, b"")})
    held = {"id": "d", "schedules": [{"slug": slug, "id": f"id-{slug}"} for slug in ("old", "new")]}
    with listening(removing) as prefect:
        deploy._remove_other_schedules(prefect.url, held, {"new"})
    assert [asked for asked, _ in prefect.asked] == ["DELETE /deployments/d/schedules/id-old"]
