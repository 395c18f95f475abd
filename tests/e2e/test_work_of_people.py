"""A candidate that waits for people, decided by Prefect's forms, and the alarm: on a real Prefect server."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.requests import AlarmRequest, ApproveRequest, NightlyRequest, RejectRequest
from flows.server.api import call
from flows.server.deploy import deploy
from flows.server.trigger import trigger
from ptpipeline.errors import SettingsError
from ptpipeline.records.base import Record
from ptpipeline.settings import load_settings
from ptpipeline.task.folder import load_task
from registry.registry import open_registry
from tests.e2e.conftest import Project
from tests.e2e.test_flows import followed
from tests.flows.cli.test_approvals import expire

pytestmark = pytest.mark.servers


@contextmanager
def awaiting(project: Project, name: str, approvals: int) -> Iterator[None]:
    """A night that ann started ended with a candidate of this task, for which so many other people have to speak."""
    settings = load_settings()
    fruit, path = settings.tasks / "fruit.yaml", settings.tasks / f"{name}.yaml"
    text = fruit.read_text().replace("name: fruit", f"name: {name}").replace("promote: auto", "promote: manual")
    path.write_text(f"{text}approvals: {approvals}\nmax_age: 100\n")
    deploy(settings, [load_task(fruit), load_task(path)])
    assert a_night_of(project, name) == ("COMPLETED", f"{name}: awaiting approval")
    yield
    path.unlink()
    deploy(settings, [load_task(fruit)])


def a_night_of(project: Project, name: str) -> tuple[str, str]:
    return decide(project, "nightly", NightlyRequest(tasks=[name], actor="ann"))


@pytest.fixture(scope="module")
def waiting(project: Project) -> Iterator[None]:
    with awaiting(project, "plum", 1):
        yield


def decide(project: Project, flow: str, request: Record) -> tuple[str, str]:
    _, end = followed(project, trigger(project.prefect, flow, request))
    return end.state, end.message


def artifact(project: Project, key: str) -> str:
    found: list[dict[str, Any]] = call(
        "POST", f"{project.prefect}/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}}
    )
    return str(found[0]["data"])


def test_the_form_asks_for_name_and_reason(project: Project, waiting: None) -> None:
    deployment = call("GET", f"{project.prefect}/deployments/name/approve/ptp-approve")
    form = deployment["parameter_openapi_schema"]["definitions"]["ApproveRequest"]
    assert form["properties"]["actor"]["title"] == "Your name"
    url = f"{project.prefect}/deployments/{deployment['id']}/create_flow_run"
    with pytest.raises(SettingsError, match="'actor' is a required property"):
        call(
            "POST",
            url,
            {"parameters": {"request": {"task": "plum", "version": 1, "verdict": "0" * 12, "reason": "why"}}},
        )


@pytest.mark.soak  # tests/registry/versions/test_approval.py asks the same without Prefect
def test_whoever_may_not_decide_is_refused_by_the_form(project: Project, waiting: None) -> None:
    read = re.findall(r"with verdict ([0-9a-f]{12})", artifact(project, "verdict-plum"))[0]
    asked = ApproveRequest(task="plum", version=1, verdict=read, actor="ann", reason="mine")
    state, why = decide(project, "approve", asked)
    assert state == "FAILED"
    assert "started the run that made it, so somebody else has to approve it" in why


def test_one_other_person_approves_by_the_form(project: Project, waiting: None) -> None:
    shown = artifact(project, "verdict-plum")
    assert "✓ pass" in shown
    read = re.findall(r"with verdict ([0-9a-f]{12})", shown)[0]
    asked = ApproveRequest(task="plum", version=1, verdict=read, actor="bob", reason="looks right")
    assert decide(project, "approve", asked)[0] == "COMPLETED"
    head = open_registry(load_settings()).ledger.head("plum", "production")
    assert head
    assert (head.version, head.actor, head.reason) == (1, "prefect (claims bob)", "approved: looks right")
    assert "approved by prefect (claims bob)" in artifact(project, "approval-plum")


@pytest.mark.soak  # tests/flows/stages/test_approve.py asks the same without Prefect
def test_what_is_in_production_is_rejected_no_more(project: Project, waiting: None) -> None:
    state, why = decide(project, "reject", RejectRequest(task="plum", version=1, actor="eve", reason="late"))
    assert (state, "is in production" in why) == ("FAILED", True)


@pytest.mark.soak
def test_two_people_approve_by_the_form(project: Project) -> None:
    with awaiting(project, "peach", 2):
        read = re.findall(r"with verdict ([0-9a-f]{12})", artifact(project, "verdict-peach"))[0]
        asked = ApproveRequest(task="peach", version=1, verdict=read, actor="bob", reason="looks right")
        assert decide(project, "approve", asked)[0] == "COMPLETED"
        ledger = open_registry(load_settings()).ledger
        assert ledger.head("peach", "production") is None
        state, told = decide(project, "approve", asked)  # once more
        assert (state, "bob" in told) == ("FAILED", True), told
        assert ledger.head("peach", "production") is None
        assert decide(project, "approve", asked.model_copy(update={"actor": "carol"}))[0] == "COMPLETED"
        head = ledger.head("peach", "production")
        assert head
        assert head.version == 1


@pytest.mark.soak
def test_what_one_person_rejects_by_the_form_is_not_asked_for_again(project: Project) -> None:
    with awaiting(project, "fig", 1):
        assert (
            decide(project, "reject", RejectRequest(task="fig", version=1, actor="eve", reason="no"))[0] == "COMPLETED"
        )
        assert "rejected by prefect (claims eve)" in artifact(project, "approval-fig")
        state, told = a_night_of(project, "fig")
        assert (state, "awaiting" in told) == ("COMPLETED", False), told
        assert open_registry(load_settings()).ledger.head("fig", "production") is None


@pytest.mark.soak  # tests/flows/cli/test_approvals.py asks the same without Prefect
def test_what_expired_is_refused_by_the_form_and_asked_for_again_by_the_next_night(project: Project) -> None:
    with awaiting(project, "date", 1):
        read = re.findall(r"with verdict ([0-9a-f]{12})", artifact(project, "verdict-date"))[0]
        settings = load_settings()
        expire(Path(settings.ledger.removeprefix("sqlite:///")))
        asked = ApproveRequest(task="date", version=1, verdict=read, actor="bob", reason="looks right")
        state, why = decide(project, "approve", asked)
        assert (state, "expired" in why) == ("FAILED", True), why
        assert open_registry(settings).ledger.head("date", "production") is None
        assert a_night_of(project, "date") == ("COMPLETED", "date: awaiting approval")
        assert decide(project, "approve", asked)[0] == "COMPLETED"
        head = open_registry(settings).ledger.head("date", "production")
        assert head
        assert head.version == 1


def test_the_alarm_is_shown_on_prefects_page_and_a_local_stack_runs_none_by_schedule(
    project: Project, waiting: None
) -> None:
    for flow in ("alarm", "reconcile"):  # the stack's watcher does their work
        assert call("GET", f"{project.prefect}/deployments/name/{flow}/ptp-{flow}")["schedules"] == []
    assert decide(project, "alarm", AlarmRequest())[0] == "COMPLETED"
    assert artifact(project, "alarm").startswith("# Overdue")
