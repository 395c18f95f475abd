"""What Prefect lacks of the deployments, by a small server that holds them; and what its forms take."""

import copy
import importlib
from collections.abc import Callable, Sequence
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
    return Prefect({"POST /deployments/filter": lambda _: (200, list(held.values()))})


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


def deployed(
    settings: Settings, held: dict[str, dict[str, Any]], due: Sequence[dict[str, Any]] = (), shared: bool = True
) -> Prefect:
    """The server after the deployment of the tasks, which adds and removes schedules there; it changes nothing else.

    due: runs that wait for a worker, and are gone with a schedule.
    """

    def update(flow: str) -> Callable[[Any], tuple[int, Any]]:
        def answer(body: Any) -> tuple[int, Any]:
            known = {one["slug"] for one in held[flow]["schedules"]}
            sent = [one for one in body.get("schedules", []) if one["slug"] not in known]
            held[flow]["schedules"] += [{**one, "id": one["slug"], "active": True} for one in sent]
            return 204, b""

        return answer

    def remove(flow: str, id_: str) -> Callable[[Any], tuple[int, Any]]:
        def answer(_: Any) -> tuple[int, Any]:
            held[flow]["schedules"] = [one for one in held[flow]["schedules"] if one["id"] != id_]
            return 204, b""

        return answer

    routes = answers(held).routes | {
        "GET /health": lambda _: (200, True),
        "GET /work_pools/ptp": lambda _: (200, {}),
        "POST /flow_runs/filter": lambda body: (200, due if body["deployments"]["id"]["any_"] == ["nightly"] else []),
        "POST /deployments/nightly/create_flow_run": lambda _: (201, {}),
        "POST /automations/filter": lambda _: (200, []),
        "POST /automations/": lambda _: (201, {}),
    }
    routes |= {f"PATCH /deployments/{flow}": update(flow) for flow in held}
    routes |= {f"PATCH /v2/concurrency_limits/{flow}": lambda _: (204, b"") for flow in held}
    for one in deploy.describe_deployment("nightly", TASKS, NAMES, "")["schedules"]:
        routes[f"PATCH /deployments/nightly/schedules/{one['slug']}"] = lambda _: (204, b"")
    for flow in held:
        for one in held[flow]["schedules"]:
            routes[f"DELETE /deployments/{flow}/schedules/{one['id']}"] = remove(flow, one["id"])
    with listening(Prefect(routes)) as prefect:
        deploy.deploy(settings.model_copy(update={"prefect": prefect.url}), TASKS, shared)
    return prefect


def changes(prefect: Prefect, flow: str) -> list[str]:
    asked = [what for what, _ in prefect.asked if what.startswith(("PATCH", "DELETE"))]
    return [what for what in asked if what.split("/")[2] == flow]


def by_hand(slug: str | None) -> dict[str, Any]:
    return {"slug": slug, "id": "mine", "active": True, "schedule": {"cron": "45 3 * * *", "timezone": "UTC"}}


@pytest.mark.parametrize("flow", ["nightly", "reconcile"])
def test_a_schedule_without_a_slug_goes_first_so_that_prefect_does_not_replace_the_paused_ones(
    settings: Settings, flow: str, caplog: pytest.LogCaptureFixture
) -> None:
    held = copy.deepcopy(ALL)
    held[flow]["schedules"].append(by_hand(None))
    first, *rest = changes(deployed(settings, held), flow)
    assert (first, rest) == (f"DELETE /deployments/{flow}/schedules/mine", [f"PATCH /deployments/{flow}"])
    assert f"the schedule `45 3 * * *` UTC of ptp-{flow} is removed from Prefect: no task file has it" in caplog.text


def test_schedules_that_no_task_has_are_removed_and_the_others_stay(settings: Settings) -> None:
    held = copy.deepcopy(ALL)
    held["nightly"]["schedules"].append(by_hand("old"))
    asked = changes(deployed(settings, held), "nightly")
    assert asked == ["PATCH /deployments/nightly", "DELETE /deployments/nightly/schedules/mine"]


@pytest.mark.parametrize(
    ("slots", "runs", "freed"),
    [(1, [], [{"active_slots": 0}]), (1, [{"id": "r"}], []), (0, [], [])],
)
def test_a_slot_of_a_poll_that_no_run_holds_is_freed(slots: int, runs: list[Any], freed: list[Any]) -> None:
    held = as_held("alarm")
    held["global_concurrency_limit"] = {"id": "l", "limit": 1, "active_slots": slots}
    free = {
        "POST /flow_runs/filter": lambda _: (200, runs),
        "PATCH /v2/concurrency_limits/l": lambda _: (204, b""),
    }
    with listening(Prefect(free)) as prefect:
        deploy._free_leaked_slot(prefect.url, held)
    assert prefect.bodies("PATCH /v2/concurrency_limits/l") == freed
    for query in prefect.bodies("POST /flow_runs/filter"):  # a run that starts or ends holds its slot too
        assert {*query["flow_runs"]["state"]["type"]["any_"]} == {"PENDING", "RUNNING", "CANCELLING"}


def test_a_deployment_frees_the_leaked_slot_of_each_poll(settings: Settings) -> None:
    held = copy.deepcopy(ALL)
    for flow in deploy.POLLS:
        held[flow]["global_concurrency_limit"] = {"id": flow, "limit": 1, "active_slots": 1}
    asked = [what for what, _ in deployed(settings, held).asked if "concurrency_limits" in what]
    assert asked == [f"PATCH /v2/concurrency_limits/{flow}" for flow in deploy.POLLS]


def test_a_night_that_is_due_outlives_a_deployment_that_removes_a_schedule(settings: Settings) -> None:
    held = copy.deepcopy(ALL)
    held["nightly"]["schedules"].append(by_hand("old"))
    due = {
        "id": "late",
        "deployment_id": "nightly",
        "auto_scheduled": True,
        "estimated_start_time_delta": 60.0,
        "expected_start_time": "2026-11-26T17:00:00Z",
        "parameters": {"request": {"schedule": "old"}},
    }
    asked = [what for what, _ in deployed(settings, held, [due]).asked]
    # looked at before anything changes, and made again after the last change that takes it away
    assert asked.index("POST /flow_runs/filter") < asked.index("PATCH /deployments/nightly")
    made = asked.index("POST /deployments/nightly/create_flow_run")
    assert asked.index("DELETE /deployments/nightly/schedules/mine") < made


def test_a_deployment_pauses_what_comes_in_place_of_a_paused_schedule(settings: Settings) -> None:
    held = copy.deepcopy(ALL)
    held["nightly"]["schedules"] = [by_hand("old") | {"active": False}]
    prefect = deployed(settings, held)
    for one in deploy.describe_deployment("nightly", TASKS, NAMES, "")["schedules"]:
        [sent] = prefect.bodies(f"PATCH /deployments/nightly/schedules/{one['slug']}")
        assert sent == {"active": False, "parameters": one["parameters"]}


def test_a_deployment_installs_the_automations(settings: Settings) -> None:
    assert deployed(settings, copy.deepcopy(ALL)).bodies("POST /automations/")


def test_on_a_local_stack_the_watcher_does_what_is_scheduled_elsewhere(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """As runs, the two would cost more than all servers at rest."""
    prefect = deployed(settings, copy.deepcopy(ALL), shared=False)
    for flow in ("reconcile", "alarm"):
        [one] = ALL[flow]["schedules"]
        assert changes(prefect, flow) == [
            f"PATCH /deployments/{flow}", f"DELETE /deployments/{flow}/schedules/{one['id']}"
        ]  # fmt: skip
        assert f"`*/5 * * * *` UTC of ptp-{flow} is removed from Prefect: the stack's watcher does its" in caplog.text


def test_a_schedule_of_a_flow_that_runs_on_request_stays(settings: Settings) -> None:
    held = copy.deepcopy(ALL)
    held["ingest"]["schedules"].append(by_hand(None))
    prefect = deployed(settings, held)
    assert changes(prefect, "ingest") == ["PATCH /deployments/ingest"]
    [sent] = prefect.bodies("PATCH /deployments/ingest")
    assert "schedules" not in sent  # an empty list would remove it


@pytest.mark.parametrize(
    ("edited", "told"),
    [
        ({"cron": "30 6 * * *", "timezone": "Europe/Berlin", "day_or": True}, "`30 6 * * *` Europe/Berlin"),
        ({"interval": 3600.0, "anchor_date": "2026-01-01", "timezone": "UTC"}, "{'interval': 3600.0,"),
        ({"cron": "0 2 * * *", "timezone": "UTC", "day_or": True}, None),
    ],
)
def test_a_schedule_that_somebody_edited_is_named_when_a_deployment_takes_that_back(
    settings: Settings, caplog: pytest.LogCaptureFixture, edited: dict[str, Any], told: str | None
) -> None:
    held = copy.deepcopy(ALL)
    [one] = [one for one in held["nightly"]["schedules"] if one["slug"] == "0-2-x-x-x-utc"]
    one["schedule"] = edited
    deployed(settings, held)
    said = [record.getMessage() for record in caplog.records if record.name == "ptpipeline.flows"]
    start = "the schedule 0-2-x-x-x-utc of ptp-nightly is `0 2 * * *` UTC again, as the task files say: in Prefect "
    assert len(said) == (told is not None)
    assert all(line.startswith(f"{start}somebody had made it {told}") for line in said)
