"""The gangs of a night as runs of several workers, against a small server that answers as Prefect's API does."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import stamina

from flows.gang import encode
from flows.requests import GangRequest
from flows.spread import GANGS_PER_WORKER, count_parts, spread
from flows.stages.chain import Night
from flows.stages.plan import identify
from tests.flows.server.test_prefect import Prefect, listening
from tests.flows.stages.test_plan import a_plan
from tests.flows.test_night import OUTCOME

REQUEST = GangRequest(tasks=[])


class Pool(Prefect):
    """Runs that end in the states that are named for their tasks, one for each attempt."""

    def __init__(self, **states: list[str]) -> None:
        super().__init__({})
        self.states, self.keys, self.unknown = states, list[str](), set[str]()
        self.history, self.set, self.night = list[str](), list[tuple[str, str]](), "RUNNING"
        self.since, self.errors = "2026-11-26T00:00:00Z", dict[str, str]()
        self.requests, self.away, self.word = list[dict[str, Any]](), set[str](), "by hand"

    def answer(self, what: str, body: Any) -> tuple[int, Any]:
        path = what.partition(" ")[2]
        if path in self.away:
            return 500, {}
        if path == "/deployments/name/gang/ptp-gang":
            return 200, {"id": "gang"}
        if path == "/deployments/gang/create_flow_run":
            self.keys.append(body["idempotency_key"])
            self.requests.append(body["parameters"]["request"])
            [task] = self.requests[-1]["tasks"]
            if task in self.unknown:
                return 409, {"detail": f"'{task}' is not one of the tasks"}
            return 201, {"id": f"{task}.{body['idempotency_key'].split()[-1]}"}
        if path.startswith("/flow_run_states/"):
            return 200, [{"type": state} for state in self.history]
        if path.endswith("/set_state"):
            run = path.split("/")[2]
            self.set.append((run, body["state"]["type"]))
            self.states[run.split(".")[0]][int(run.split(".")[1]) - 1] = body["state"]["type"]
            return 201, {}
        if path == "/flow_runs/this":
            return 200, {"state_type": self.night}
        if path.startswith("/flow_runs/"):
            task, attempt = path.rpartition("/")[2].split(".")
            state = {"message": self.word, "timestamp": self.since}
            return 200, {"state_type": self.states[task][int(attempt) - 1], "state": state}
        if path == "/artifacts/filter":
            if body["artifacts"].get("type") != {"any_": ["outcomes"]}:
                return 422, {"detail": "the table of the run is among these artifacts"}
            [run] = body["artifacts"]["flow_run_id"]["any_"]
            task, attempt = run.split(".")
            done = self.states[task][int(attempt) - 1] == "COMPLETED"
            outcomes = {} if task in self.errors else {task: OUTCOME.model_copy(update={"task": task})}
            return 200, [{"data": json.dumps(encode(Night(outcomes, self.errors)))}] if done else []
        return super().answer(what, body)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.spread._POLL_SECONDS", 0.01)


def run(pool: Pool) -> Night:
    with listening(pool) as prefect:
        return spread(prefect.url, "night", REQUEST, "this", [[a_plan(task)] for task in pool.states])


def test_the_outcomes_of_all_gangs_come_back() -> None:
    night = run(Pool(a=["COMPLETED"], b=["COMPLETED"]))
    assert (sorted(night.outcomes), night.errors) == (["a", "b"], {})


def test_a_gang_runs_as_its_night_does() -> None:
    pool = Pool(a=["COMPLETED"])
    asked = GangRequest(tasks=[], force=True, actor="ann", schedule="0-2")
    with listening(pool) as prefect:
        spread(prefect.url, "night", asked, "this", [[a_plan("a")]])
    assert pool.requests == [{"tasks": ["a"], "force": True, "actor": "ann", "schedule": "0-2"}]


def test_a_run_that_ended_without_a_word_is_told_so() -> None:
    pool = Pool(a=["FAILED"])
    pool.word = ""
    assert run(pool).errors["a"] == "its run a.1 ended FAILED: it left no outcome"


def test_a_gang_whose_worker_died_is_given_to_another() -> None:
    pool = Pool(a=["CRASHED", "COMPLETED"])
    night = run(pool)
    assert list(night.outcomes) == ["a"]
    gang = identify([a_plan("a")])
    assert pool.keys == [f"night {gang} 1", f"night {gang} 2"]  # a night that is resumed finds the same runs


def test_a_gang_that_ends_every_worker_is_given_up() -> None:
    night = run(Pool(a=["CRASHED"] * 4, b=["COMPLETED"]))
    assert list(night.outcomes) == ["b"]
    assert night.errors["a"] == "its run a.4 ended CRASHED: by hand"


def test_a_cancelled_gang_fails_its_tasks_alone() -> None:
    night = run(Pool(a=["CANCELLED"], b=["COMPLETED"]))
    assert (list(night.outcomes), list(night.errors)) == (["b"], ["a"])


def test_a_crash_of_a_gang_that_a_person_cancelled_is_no_death() -> None:
    pool = Pool(a=["CRASHED", "COMPLETED"])
    pool.history = ["RUNNING", "CANCELLING", "CRASHED"]
    assert list(run(pool).errors) == ["a"]


def test_a_gang_that_cannot_be_given_fails_alone() -> None:
    pool = Pool(a=["COMPLETED"], b=["COMPLETED"])
    pool.unknown = {"a"}
    night = run(pool)
    assert (list(night.outcomes), list(night.errors)) == (["b"], ["a"])


def test_a_gang_whose_worker_never_began_is_given_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.spread._PENDING_SECONDS", 0.1)
    pool = Pool(a=["PENDING", "COMPLETED"])
    night = run(pool)
    assert (pool.set, list(night.outcomes)) == ([("a.1", "CRASHED")], ["a"])


def test_how_long_a_gang_has_not_begun_is_not_read_off_two_clocks() -> None:
    """The server's stamp is months old by this machine's clock."""

    class Slow(Pool):
        def answer(self, what: str, body: Any) -> tuple[int, Any]:
            status, found = super().answer(what, body)
            if what == "GET /flow_runs/a.1":
                self.states["a"][0] = "COMPLETED"
            return status, found

    pool = Slow(a=["PENDING"])
    assert (list(run(pool).outcomes), pool.set) == (["a"], [])


def test_what_a_gang_says_of_a_task_stands_before_how_its_run_ended() -> None:
    pool = Pool(a=["COMPLETED"])
    pool.errors = {"a": "no rows"}
    assert run(pool) == Night({}, {"a": "no rows"})


def test_a_worker_has_time_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(a=["PENDING"])
    pool.since = datetime.now(UTC).isoformat()
    monkeypatch.setattr("flows.spread.time.sleep", _end)
    with pytest.raises(SystemExit):
        run(pool)
    assert pool.set == []


def _end(_seconds: float) -> None:
    raise SystemExit(143)


@pytest.mark.parametrize(
    ("night", "cancelled"),
    [("CANCELLING", [("a.1", "CANCELLING")]), ("CANCELLED", [("a.1", "CANCELLING")]), ("RUNNING", [])],
)
def test_who_cancels_a_night_cancels_its_gangs_and_who_evicts_it_does_not(
    night: str, cancelled: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(a=["RUNNING"])
    pool.night = night

    monkeypatch.setattr("flows.spread.time.sleep", _end)
    with pytest.raises(SystemExit):
        run(pool)
    assert pool.set == cancelled


def test_a_server_that_is_away_hides_nothing_of_why_the_night_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(a=["RUNNING"])
    pool.away = {"/flow_runs/this"}
    monkeypatch.setattr("flows.spread.time.sleep", _end)
    with pytest.raises(SystemExit):
        run(pool)


def test_a_server_that_is_away_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faltering(Pool):
        def answer(self, what: str, body: Any) -> tuple[int, Any]:
            self.asked.append((what, body))
            falters = sum(asked == what for asked, _ in self.asked) == 1
            return (500, {}) if falters and not what.startswith("GET /flow_runs/this") else super().answer(what, body)

    stamina.set_testing(True, attempts=3)
    try:
        assert list(run(Faltering(a=["COMPLETED"])).outcomes) == ["a"]
    finally:
        stamina.set_testing(False)


@pytest.mark.parametrize(
    ("kind", "online", "parts"),
    [
        ("process", 0, None),
        ("process", 1, None),
        ("process", 2, 2 * GANGS_PER_WORKER),
        ("kubernetes", 0, 2),
        ("kubernetes", 1, 2),
    ],
)
def test_one_worker_of_processes_trains_in_the_night_itself(kind: str, online: int, parts: int | None) -> None:
    workers = [{"status": "ONLINE"}] * online + [{"status": "OFFLINE"}] * 3
    answers = {
        "GET /work_pools/ptp": lambda _: (200, {"type": kind}),
        "POST /work_pools/ptp/workers/filter": lambda _: (200, workers),
    }
    with listening(Prefect(answers)) as prefect:
        assert count_parts(prefect.url) == parts


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_that_does_not_tell_its_workers_spreads_nothing(status: int) -> None:
    answers = {"GET /work_pools/ptp": lambda _: (status, {})}
    with listening(Prefect(answers)) as prefect:
        assert count_parts(prefect.url) is None
