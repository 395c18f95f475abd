"""How the chain runs: by force, with its trainings given away, and beside a run that works on the same task."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.stages.chain import Mode, Night, run
from flows.stages.context import select_tasks
from flows.stages.plan import Plan
from registry.ledger.gang import GangLease
from tests.flows.conftest import NAME
from tests.flows.project import Project


@pytest.fixture
def project(first_night: Project, tmp_path: Path) -> Project:
    """A project whose one task ran."""
    made = first_night.copy(tmp_path)
    made.lines.clear()
    return made


class Elsewhere:
    """Takes gangs over, and says what came of them."""

    def __init__(self) -> None:
        self.given: list[list[str]] = []

    def __call__(self, gangs: Sequence[Sequence[Plan]]) -> Night:
        self.given += [[plan.task for plan in gang] for gang in gangs]
        return Night({}, {plan.task: "its worker says so" for gang in gangs for plan in gang})


def test_a_forced_run_trains_what_is_unchanged(project: Project) -> None:
    night = run(project.stages, select_tasks(project.settings), Mode(force=True))
    assert project.trained
    assert (night.outcomes[NAME].plan, night.outcomes[NAME].version) == ("forced", 1)


def test_what_trains_is_given_away_and_what_does_not_is_finished_here(project: Project) -> None:
    elsewhere = Elsewhere()
    night = run(project.stages, select_tasks(project.settings), Mode(isolate=True, spread=elsewhere))
    assert (elsewhere.given, list(night.outcomes), night.errors) == ([], [NAME], {})
    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    night = run(project.stages, select_tasks(project.settings), Mode(isolate=True, spread=elsewhere))
    assert (elsewhere.given, night) == ([[NAME]], Night({}, {NAME: "its worker says so"}))
    assert not project.trained


def test_a_task_waits_for_another_run_as_long_as_it_is_told(project: Project) -> None:
    stages = project.stages
    other = GangLease(stages.registry.ledger.database, [f"task {NAME}"], 60.0)
    other.take()
    began = time.monotonic()
    night = run(stages, select_tasks(project.settings), Mode(isolate=True, patience=0.1))
    assert time.monotonic() - began < 20
    assert "another run works on it, and goes on doing so" in night.errors[NAME]
