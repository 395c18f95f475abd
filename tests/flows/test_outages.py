"""A night whose ledger or store is away for minutes, at every instant at which no Prefect step asks again by itself."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
import stamina
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from flows.night import find_verdict
from flows.nightly import nightly
from flows.requests import NightlyRequest
from flows.stages.approve import Approvals
from flows.stages.chain import Mode, Night, Result, run
from flows.stages.context import Context, select_tasks
from ptpipeline.errors import ServiceUnavailable, TrainingError
from ptpipeline.storage import FolderStore
from registry.ledger.events import take_due
from registry.ledger.ledger import Ledger
from registry.ledger.nights import list_nights
from registry.registry import Registry
from tests.flows.conftest import NAME
from tests.flows.project import Project

TRIES = 12  # that each patience of ten minutes has here; none of them waits
FAULTS = 10  # more than what is only a moment gets


class Outage:
    """Ledger and store answer nothing from the call of that number on, and again after so many tries.

    Calls inside a step count for nothing; each step works once, as it would come to the same again.
    """

    def __init__(self, number: int, steps: dict[str, Any]) -> None:
        self.calls = self.faults = 0
        self.inside = False
        self._number, self._steps = number, steps

    def fails(self) -> bool:
        """Whether the call that is made now is not answered."""
        if self.inside or threading.current_thread() is not threading.main_thread():
            return False
        self.calls += 1
        if self.calls < self._number or self.faults == FAULTS:
            return False
        self.faults += 1
        return True

    def step(self, name: str, work: Callable[[], Result], /) -> Result:
        """Do the work as a step, which has a patience of its own."""
        self.inside = True
        if name not in self._steps:
            self._steps[name] = work()
        self.inside = False
        return cast(Result, self._steps[name])

    @contextmanager
    def of_ledgers(self) -> Iterator[None]:
        """Let every transaction of the block go through the outage."""

        def begin(_connection: Connection) -> None:
            if self.fails():
                raise OperationalError("BEGIN", {}, sqlite3.OperationalError("the server is away"))

        event.listen(Engine, "begin", begin)
        try:
            with stamina.set_testing(True, attempts=TRIES, cap=True):
                yield
        finally:
            event.remove(Engine, "begin", begin)


class AwayStore(FolderStore):
    """A folder of which every call goes through an outage."""

    outage: Outage

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if callable(value) and not name.startswith("_") and self.outage.fails():
            raise ServiceUnavailable("the store does not answer")
        return value


def outages() -> Iterator[Outage]:
    """Yield an outage at each call, until one came too late for the run that it was for."""
    steps: dict[str, Any] = {}
    for number in count(1):
        outage = Outage(number, steps)
        yield outage
        if not outage.faults:
            assert number > 1
            return


def test_a_task_comes_through_whenever_the_ledger_is_away(first_night: Project, tmp_path: Path) -> None:
    for number, outage in enumerate(outages()):
        project = first_night.copy(tmp_path / str(number))
        context = project.stages
        with outage.of_ledgers():
            night = run(context, select_tasks(project.settings), Mode(outage.step, isolate=True))
        assert came_through(night), outage.calls


def test_a_task_comes_through_whenever_the_store_is_away(first_night: Project, tmp_path: Path) -> None:
    for number, outage in enumerate(outages()):
        project = first_night.copy(tmp_path / str(number))
        context = project.stages
        store = AwayStore(project.folder / "store")
        store.outage = outage
        context = Context(context.settings, Registry(context.registry.ledger, store))
        with stamina.set_testing(True, attempts=TRIES, cap=True):
            night = run(context, select_tasks(project.settings), Mode(outage.step, isolate=True))
        assert came_through(night), outage.calls


def came_through(night: Night) -> bool:
    return night.errors == {} and list(night.outcomes) == [NAME]


def test_what_people_decided_is_shown_although_the_ledger_was_away(first_night: Project, tmp_path: Path) -> None:
    context = first_night.copy(tmp_path).stages
    context.registry.ledger.database.time()  # it is open
    decided = Approvals(
        task=NAME,
        version=1,
        status="approved",
        given=1,
        needed=1,
        started_by="ann",
        decisions=[],
        asked_at="",
        expires_at="",
        verdict="",
    )
    outage = Outage(1, {})
    with outage.of_ledgers():
        verdict = find_verdict(context.registry, decided)
    assert verdict
    assert (verdict.passed, outage.faults) == (True, FAULTS)


def test_a_night_is_kept_whenever_the_ledger_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(flow_run), "scheduled_start_time", datetime.now(UTC))
    for number, outage in enumerate(outages()):
        home = tmp_path / str(number)
        home.mkdir()
        for name, value in {"HOME": home, "TASKS": home, "LEDGER": f"sqlite:///{home}/ledger.db"}.items():
            monkeypatch.setenv(f"PTP_{name}", str(value))
        monkeypatch.setenv("PTP_STORE", f"file://{home}/store")
        failed = pytest.raises(TrainingError, match="the worker of this run died 9 times")
        with outage.of_ledgers(), temporary_settings({PREFECT_API_URL: None}), failed:
            nightly.fn(NightlyRequest(schedule="x", night="first", resumes=9))
        ledger = Ledger(f"sqlite:///{home}/ledger.db")
        [night] = list_nights(ledger, 9)
        assert (night.state, night.cause) == ("Failed", "schedule x"), outage.calls
        told = take_due(ledger.database, "ops")
        assert told
        assert told.kind == "night_ended"
