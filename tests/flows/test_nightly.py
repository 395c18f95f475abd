"""What the ledger tells of a night, mostly of one that did not come to its tasks; no Prefect server runs here."""

import json
import time
from functools import partial
from pathlib import Path

import pytest
import stamina
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed

from flows import chronicle
from flows.chronicle import begin, finish, noting_cancellation
from flows.nightly import choose_mode, complete, nightly
from flows.requests import GangRequest, NightlyRequest, TuneRequest
from flows.spread import GANGS_PER_WORKER, spread
from flows.stages.chain import Night
from flows.stages.context import Context
from flows.tune import tune
from flows.turn import NIGHT
from ptpipeline.errors import NotFound, TrainingError
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore
from registry.ledger.gang import GangLease
from registry.ledger.ledger import Ledger
from registry.ledger.nights import NightTask, RecordedNight, begin_night, list_nights
from registry.registry import Registry
from tests.flows.server.test_prefect import Prefect, listening
from tests.flows.test_night import OUTCOME
from tests.http_server import Quiet, serve


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    settings = {
        "PTP_HOME": tmp_path,
        "PTP_TASKS": tmp_path,
        "PTP_LEDGER": f"sqlite:///{tmp_path}/ledger.db",
        "PTP_STORE": f"file://{tmp_path}/store",
        "PTP_NIGHT_OVERLAP": "skip",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    return Ledger(settings["PTP_LEDGER"])


def run(request: NightlyRequest) -> object:
    with temporary_settings({PREFECT_API_URL: None}):
        return nightly.fn(request)


def test_a_night_that_ends_by_an_error_ends_in_the_ledger(ledger: Ledger) -> None:
    with pytest.raises(TrainingError, match="the worker of this run died 9 times"):
        run(NightlyRequest(resumes=9, night="first"))
    [night] = list_nights(ledger, 9)
    assert (night.id, night.state, night.ended is None) == ("first", "Failed", False)


def test_a_twin_that_is_skipped_leaves_the_row_to_the_night_that_works(ledger: Ledger) -> None:
    begin_night(ledger, RecordedNight(id="first", flow="nightly", cause="me", page=None, started="2026-11-26T00:00:00"))
    working = GangLease(ledger.database, [NIGHT], 60)
    working.take()
    with working.beating():
        run(NightlyRequest(resumes=1, night="first"))
    [night] = list_nights(ledger, 9)
    assert (night.id, night.ended, night.cause) == ("first", None, "me")


def test_a_night_whose_run_a_person_cancelled_is_not_begun_again(ledger: Ledger) -> None:
    ended = run(NightlyRequest(resumes=1, night="first", cancelled=True))
    assert isinstance(ended, State)
    assert (ended.name, list_nights(ledger, 9)) == ("Skipped", [])


def asked_for(request: NightlyRequest, run: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> NightlyRequest:
    """What the flow makes of a request whose run, or the one that it goes on with, has the id `r`."""
    monkeypatch.setitem(vars(flow_run), "id", "r")
    answers = {
        "GET /flow_runs/r": lambda _: (200, {"deployment_id": "d", **run}),
        "GET /deployments/d": lambda _: (200, {"schedules": [{"id": "s", "slug": "0-5-x-x-x-utc"}]}),
    }
    with listening(Prefect(answers)) as prefect, temporary_settings({PREFECT_API_URL: prefect.url}):
        return complete(request)


BY_SCHEDULE = {"created_by": {"type": "SCHEDULE", "id": "s", "display_value": "CronSchedule"}}


@pytest.mark.parametrize(
    ("request_", "run", "schedule"),
    [
        (NightlyRequest(), BY_SCHEDULE, "0-5-x-x-x-utc"),
        (NightlyRequest(night="r", resumes=1), BY_SCHEDULE, "0-5-x-x-x-utc"),
        (NightlyRequest(schedule="mine"), BY_SCHEDULE, "mine"),
        (NightlyRequest(tasks=["mood"]), BY_SCHEDULE, None),
        (NightlyRequest(), {"created_by": None}, None),  # a person started it
        (NightlyRequest(), {"created_by": {"type": "AUTOMATION", "id": "s"}}, None),
        (NightlyRequest(), {"created_by": {"type": "SCHEDULE", "id": "gone"}}, None),
    ],
)
def test_a_night_is_of_the_schedule_that_made_it_though_prefect_lost_the_parameter(
    request_: NightlyRequest, run: dict[str, object], schedule: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked_for(request_, run, monkeypatch) == request_.model_copy(update={"schedule": schedule})


def test_a_night_whose_first_run_a_person_deleted_goes_on() -> None:
    with listening(Prefect({})) as prefect, temporary_settings({PREFECT_API_URL: prefect.url}):
        assert complete(NightlyRequest(night="gone", resumes=1)).schedule is None


def test_a_night_asks_again_for_its_schedule_while_prefect_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    away = iter([502])
    run: dict[str, object] = {"created_by": BY_SCHEDULE["created_by"], "deployment_id": "d"}
    answers = {
        "GET /flow_runs/r": lambda _: (next(away, 200), run),
        "GET /deployments/d": lambda _: (200, {"schedules": [{"id": "s", "slug": "0-5-x-x-x-utc"}]}),
    }
    with listening(Prefect(answers)) as prefect, temporary_settings({PREFECT_API_URL: prefect.url}):
        assert complete(NightlyRequest(night="r", resumes=1)).schedule == "0-5-x-x-x-utc"


def test_others_are_told_of_a_night_that_ended_by_an_error(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(flow_run), "flow_name", "nightly")
    received: list[bytes] = []

    class Chat(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.answer(200)

    with serve(Chat) as url:
        monkeypatch.setenv("PTP_EVENTS", "ops")
        monkeypatch.setenv("PTP_EVENT_OPS", f"slack:{url}")
        with pytest.raises(TrainingError):
            run(NightlyRequest(resumes=9, night="first"))
    assert [json.loads(body)["text"] for body in received] == ["night ended: nightly ended as Failed: no tasks"]


# ---------------------------------------------------------------- why it began, and what it came to


@pytest.mark.parametrize(
    ("request_", "cause"),
    [
        (NightlyRequest(), "asked for"),
        (NightlyRequest(reason="new data"), "new data"),
        (NightlyRequest(schedule="0-2", reason="new data"), "schedule 0-2"),
        (TuneRequest(), "asked for"),
    ],
)
def test_the_cause_of_a_night_is_its_schedule_else_what_was_given(
    ledger: Ledger, context: Context, monkeypatch: pytest.MonkeyPatch, request_: NightlyRequest, cause: str
) -> None:
    monkeypatch.setitem(vars(flow_run), "id", "run")
    assert begin(context, request_).id == "run"
    [night] = list_nights(ledger, 9)
    assert (night.id, night.cause, night.ended) == ("run", cause, None)


def test_a_night_is_known_by_the_run_that_began_it(
    ledger: Ledger, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(flow_run), "id", "second")
    assert begin(context, NightlyRequest(night="first")).id == "first"


def test_a_night_that_prefect_runs_again_after_its_end_is_another_night(
    ledger: Ledger, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(flow_run), "id", "run")
    finish(context, begin(context, NightlyRequest()), Night({}, {"tone": "no rows"}), Failed())
    monkeypatch.setitem(vars(flow_run), "run_count", 2)
    again = begin(context, NightlyRequest())
    finish(context, again, Night({}, {}), Completed())
    assert again.id == "run 2"
    assert [(night.id, night.state) for night in list_nights(ledger, 9)] == [("run 2", "Completed"), ("run", "Failed")]


def end_by_signal(context: Context, begun: RecordedNight, state: str) -> None:
    """End the night of the run `run`, which Prefect has in that state, by the signal that ends its process."""
    answers = {"GET /flow_runs/run": lambda _: (200, {"state_type": state})}
    with (
        listening(Prefect(answers)) as prefect,
        temporary_settings({PREFECT_API_URL: prefect.url}),
        pytest.raises(TerminationSignal),
        noting_cancellation(context, begun),
    ):
        raise TerminationSignal(15)


@pytest.mark.parametrize(("state", "noted"), [("CANCELLING", "Cancelled"), ("RUNNING", None)])  # or it was evicted
def test_a_night_that_a_person_cancels_has_ended(
    ledger: Ledger, context: Context, monkeypatch: pytest.MonkeyPatch, state: str, noted: str | None
) -> None:
    monkeypatch.setitem(vars(flow_run), "id", "run")
    begun = begin(context, NightlyRequest())
    end_by_signal(context, begun, state)
    [night] = list_nights(ledger, 9)
    assert night.state == noted


def test_a_cancelled_night_ends_soon_although_the_ledger_is_away(
    ledger: Ledger, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(flow_run), "id", "run")
    monkeypatch.setattr(chronicle, "_CANCEL_SECONDS", 0.1)
    begun, began = begin(context, NightlyRequest()), time.monotonic()
    with ledger.database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE night RENAME TO elsewhere")
    end_by_signal(context, begun, "CANCELLING")
    assert time.monotonic() - began < 10


@pytest.fixture
def context(ledger: Ledger, tmp_path: Path) -> Context:
    return Context(Settings(home=tmp_path, tasks=tmp_path), Registry(ledger, FolderStore(tmp_path / "store")))


def test_what_a_night_came_to_is_kept_task_by_task(ledger: Ledger, context: Context) -> None:
    begun, state = begin(context, NightlyRequest(night="first")), Completed(name="Awaiting approval")
    cost = {"tokens": 900, "seconds": 2.0, "processor_seconds": 3.5, "rows": 110}
    mood = OUTCOME.model_copy(update={**cost, "plan": "new rows"})
    told = OUTCOME.model_copy(update={"task": "topic"})
    assert finish(context, begun, Night({"mood": mood, "topic": told}, {"tone": "no rows"}), state) is state
    [night] = list_nights(ledger, 9)
    assert (night.state, night.ended is None) == ("Awaiting approval", False)
    kept = {task.task: task for task in night.tasks}
    assert kept["mood"] == NightTask(
        task="mood", status="no gain", reason="new rows", verdict="failed: gain", version=3, **cost
    )
    assert kept["topic"].reason == OUTCOME.reason
    assert kept["tone"] == NightTask(task="tone", status="failed", reason="no rows")


def test_a_ledger_that_cannot_keep_it_ends_no_night(
    ledger: Ledger, context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    with ledger.database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE night RENAME TO elsewhere")
    with stamina.set_testing(True, attempts=3, cap=True):
        begun = begin(context, NightlyRequest(night="first"))
    assert begun.id == "first"
    assert "`ptp nights` will not tell of this run" in caplog.text
    with ledger.database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO night")
    finish(context, begun, Night({}, {"tone": "no rows"}), Failed())
    [night] = list_nights(ledger, 9)
    assert (night.state, night.cause, [task.task for task in night.tasks]) == ("Failed", "asked for", ["tone"])


def test_a_schedule_that_no_task_has_ends_the_night(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="no task has the schedule 'x'; there are none: deploy again"):
        run(NightlyRequest(schedule="x", night="first"))
    [night] = list_nights(ledger, 9)
    assert (night.cause, night.state) == ("schedule x", "Failed")


def test_a_tuning_of_a_task_that_is_not_there_ends_in_the_ledger(ledger: Ledger) -> None:
    with pytest.raises(NotFound), temporary_settings({PREFECT_API_URL: None}):
        tune.fn(TuneRequest(tasks=["missing"]))
    [night] = list_nights(ledger, 9)
    assert night.state == "Failed"


# ---------------------------------------------------------------- several workers


def test_gangs_are_given_away_under_the_name_of_the_night_and_run_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(flow_run), "id", "this")
    asked = NightlyRequest(force=True, actor="ann", schedule="0-2", night="first")
    gang = GangRequest(tasks=[], force=True, actor="ann", schedule="0-2")
    answers = {
        "GET /work_pools/ptp": lambda _: (200, {"type": "process"}),
        "POST /work_pools/ptp/workers/filter": lambda _: (200, [{"status": "ONLINE"}] * 2),
    }
    with listening(Prefect(answers)) as prefect, temporary_settings({PREFECT_API_URL: prefect.url}):
        mode = choose_mode(asked, "first 2")
    assert isinstance(mode.spread, partial)
    assert (mode.spread.func, mode.spread.args) == (spread, (prefect.url, "first 2", gang, "this"))
    assert (mode.parts, mode.force, mode.isolate) == (2 * GANGS_PER_WORKER, True, True)


def test_a_night_trains_by_itself_where_nobody_can_take_its_gangs() -> None:
    with listening(Prefect({})) as prefect, temporary_settings({PREFECT_API_URL: prefect.url}):
        assert choose_mode(NightlyRequest(), "this").spread is None
