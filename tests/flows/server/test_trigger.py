"""How a run is started: its name, its tags, and what is told of a task that Prefect does not know."""

import itertools
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest

from flows.requests import PromoteRequest
from flows.server import trigger as following
from flows.server.trigger import Finished, LogLine, follow, trigger
from ptpipeline.errors import ServiceUnavailable, SettingsError
from tests.flows.server.test_prefect import Prefect, Run, a_line, listening

DEPLOYED = {"GET /deployments/name/promote/ptp-promote": lambda _: (200, {"id": "d"})}
REQUEST = PromoteRequest(task="mood", version=3, reason="good")


def test_a_run_is_named_and_tagged_after_its_task() -> None:
    taking = {"POST /deployments/d/create_flow_run": lambda _: (201, {"id": "r"})}
    with listening(Prefect(DEPLOYED | taking)) as prefect:
        trigger(prefect.url, "promote", REQUEST)
    [body] = prefect.bodies("POST /deployments/d/create_flow_run")
    assert (body["tags"], body["name"].split()[::2]) == (["task:mood"], ["promote", "mood@3"])


@pytest.mark.parametrize(
    ("detail", "hinted"), [("'tone' is not one of ['mood']", True), ("the reason is missing", False)]
)
def test_a_task_that_prefect_does_not_know_is_told_with_the_verb_that_makes_it_known(detail: str, hinted: bool) -> None:
    refusing = {"POST /deployments/d/create_flow_run": lambda _: (409, {"detail": detail})}
    with listening(Prefect(DEPLOYED | refusing)) as prefect, pytest.raises(SettingsError) as raised:
        trigger(prefect.url, "promote", REQUEST)
    assert detail in str(raised.value)
    assert ("`ptp up` makes a new task known to Prefect" in str(raised.value)) == hinted


def test_a_line_that_arrives_behind_later_ones_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.01)
    run = Run(0, "COMPLETED")
    run.lines, run.more = [a_line(70)], [a_line(30), a_line(80)]
    with listening(Prefect(run.routes())) as prefect:
        *lines, _ = follow(prefect.url, "r")
    assert [line.message for line in lines if isinstance(line, LogLine)] == ["line 70", "line 30", "line 80"]
    [asked] = prefect.bodies("POST /artifacts/filter")
    assert asked["artifacts"] == {"flow_run_id": {"any_": ["r"]}, "type": {"any_": ["table"]}}  # a run has others


def test_why_a_run_waits_is_told_at_growing_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(following, "_PATIENCE", 0.02)
    ended, waiting = Run(0, "COMPLETED"), {"work_pool_name": None, "state_type": "SCHEDULED", "state": {"name": "Late"}}
    until = time.monotonic() + 0.6

    def look(body: Any) -> tuple[int, Any]:
        return (200, waiting) if time.monotonic() < until else ended.look(body)

    with listening(Prefect(ended.routes() | {"GET /flow_runs/r": look})) as prefect:
        lines = [line.message for line in follow(prefect.url, "r") if isinstance(line, LogLine)]
    told = [line for line in lines if line.startswith("waits:")]
    assert 1 <= len(told) <= 6  # after .02, .04, .08 ... seconds


@pytest.mark.parametrize("patience", [60.0, 0.0])
def test_a_server_that_is_away_is_told_once_and_waited_for(monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(following, "_AWAY_SECONDS", patience)
    ended, looks = Run(0, "COMPLETED"), iter([500, 500, 500])

    def look(body: Any) -> tuple[int, Any]:
        return (status, {}) if (status := next(looks, None)) else ended.look(body)

    with listening(Prefect(ended.routes() | {"GET /flow_runs/r": look})) as prefect:
        if not patience:
            with pytest.raises(ServiceUnavailable, match="Prefect answered 500"):
                list(follow(prefect.url, "r"))
            return
        *lines, end = follow(prefect.url, "r")
    told = [line.message for line in lines if isinstance(line, LogLine) and line.level == logging.WARNING]
    assert len(told) == 1
    assert told[0].endswith("the run goes on, and its log is followed as soon as Prefect answers again")
    assert isinstance(end, Finished)
    assert end.state == "COMPLETED"


RUNNING = {"state_type": "RUNNING", "state": {"name": "Running", "message": None}}


def test_a_run_that_a_worker_has_taken_does_not_wait_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(following, "_PATIENCE", 0.0)
    with listening(Prefect(Run(0, "COMPLETED").routes())) as prefect:
        told = [line.message for line in follow(prefect.url, "r") if isinstance(line, LogLine)]
    assert [line for line in told if line.startswith("waits:")] == []


def test_each_time_that_a_server_is_away_is_waited_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that tells 200 seconds more whenever it is asked; a server may be away for 300."""
    clock = SimpleNamespace(monotonic=itertools.count(0, 200).__next__, sleep=lambda _: None)
    monkeypatch.setattr(following, "time", clock)
    ended, looks = Run(0, "COMPLETED"), iter([200, 500, 200, 500])

    def look(body: Any) -> tuple[int, Any]:
        return (status, RUNNING) if (status := next(looks, None)) else ended.look(body)

    with listening(Prefect(ended.routes() | {"GET /flow_runs/r": look})) as prefect:
        *lines, end = follow(prefect.url, "r")
    told = [line.message for line in lines if isinstance(line, LogLine) and "goes on" in line.message]
    assert (len(told), isinstance(end, Finished)) == (2, True)


def test_a_run_may_end_without_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.01)
    ended = {"state_type": "COMPLETED", "state": {"name": "Completed", "message": None}}
    with listening(Prefect(Run(0, "").routes() | {"GET /flow_runs/r": lambda _: (200, ended)})) as prefect:
        *_, end = follow(prefect.url, "r")
    assert isinstance(end, Finished)
    assert (end.name, end.message) == ("Completed", "")
