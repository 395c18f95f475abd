"""Whether a night may run now: not too late, and not beside another one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.runtime import flow_run

from flows.requests import NightlyRequest
from flows.stages.context import Context
from flows.turn import NIGHT, Skipped, check_lateness, take_turn
from ptpipeline.errors import TrainingError
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore
from registry.ledger.gang import GangLease
from registry.ledger.ledger import Ledger
from registry.registry import Registry

BRIEF = 0.3  # seconds
DUE = datetime(2026, 11, 26, 17, 0, tzinfo=UTC)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    registry = Registry(Ledger(f"sqlite:///{tmp_path}/ledger.db"), FolderStore(tmp_path / "store"))
    return Context(Settings(home=tmp_path, tasks=tmp_path, night_overlap="skip"), registry)


@pytest.mark.parametrize("hours", [-1, 11.9, 12])
def test_a_run_that_is_a_little_late_runs(hours: float) -> None:
    check_lateness(DUE, DUE + timedelta(hours=hours), most=12)


def test_a_run_that_is_too_late_is_skipped_and_says_so() -> None:
    with pytest.raises(Skipped, match=r"due at 2026-11-26 17:00 UTC and would begin 12\.5 hours late") as skipped:
        check_lateness(DUE, DUE + timedelta(hours=12.5), most=12)
    state = skipped.value.end()
    assert (state.name, state.is_completed()) == ("Skipped", True)


def test_lateness_is_counted_by_real_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")  # in that night its clock showed an hour twice
    before, after = datetime(2026, 10, 24, 23, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    with pytest.raises(Skipped, match=r"2\.0 hours late"):
        check_lateness(before, after, most=1.5)


@pytest.fixture
def long_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of this process was due long ago."""
    due = datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setitem(vars(flow_run), "scheduled_start_time", due)  # an attribute of Prefect's that is computed


@pytest.mark.usefixtures("long_due")
def test_what_a_person_asks_for_is_never_too_late_and_what_the_scheduler_starts_is(context: Context) -> None:
    with take_turn(context, NightlyRequest(), BRIEF):
        pass
    with pytest.raises(Skipped, match=r"due at 2026-01-01 00:00 UTC"), take_turn(context, NightlyRequest(schedule="x")):
        pass


@pytest.mark.usefixtures("long_due")
def test_a_night_that_is_too_late_is_skipped_although_it_may_wait_for_another(context: Context) -> None:
    waits = Context(context.settings.model_copy(update={"night_overlap": "wait"}), context.registry)
    first = GangLease(context.registry.ledger.database, [NIGHT], 60.0)
    first.take()
    with pytest.raises(Skipped, match="hours late"), take_turn(waits, NightlyRequest(schedule="x"), BRIEF):
        pass


def test_a_second_night_is_skipped_while_one_runs(context: Context) -> None:
    first = GangLease(context.registry.ledger.database, [NIGHT], 60.0)
    first.take()
    skipped = pytest.raises(Skipped, match=r"another night still runs .*PTP_NIGHT_OVERLAP=skip")
    with first.beating(), skipped, take_turn(context, NightlyRequest(), BRIEF):
        pass


def test_a_night_follows_one_that_died(context: Context) -> None:
    GangLease(context.registry.ledger.database, [NIGHT], BRIEF).take()
    ran = False
    with take_turn(context, NightlyRequest(), BRIEF):
        ran = True
    assert ran


def test_a_night_waits_for_another_unless_the_settings_say_otherwise(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Context(context.settings.model_copy(update={"night_overlap": "wait"}), context.registry)
    first, slept = GangLease(context.registry.ledger.database, [NIGHT], 60.0), list[float]()
    first.take()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        first.release()

    monkeypatch.setattr("flows.turn.time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr("registry.ledger.gang._POLL_SECONDS", 0.01)
    with take_turn(waits, NightlyRequest(), BRIEF):
        assert len(slept) == 1


def test_a_night_is_resumed_three_times(context: Context) -> None:
    with take_turn(context, NightlyRequest(resumes=3), BRIEF):
        pass


def test_a_night_whose_workers_keep_dying_is_given_up(context: Context) -> None:
    given_up = pytest.raises(TrainingError, match="the worker of this run died 4 times")
    with given_up, take_turn(context, NightlyRequest(resumes=4)):
        pass
