"""What runs are called in Prefect's lists."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from flows.requests import (
    ApproveRequest,
    NightlyRequest,
    PromoteRequest,
    ReconcileRequest,
    RejectRequest,
    RollbackRequest,
    key_run,
    name_run,
    name_tasks,
)
from ptpipeline.records.base import Record

AT = datetime(2026, 11, 26, 2, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("flow", "request_", "name"),
    [
        ("nightly", NightlyRequest(), "nightly 2026-11-26 all"),
        ("nightly", NightlyRequest(schedule="0-2-x-x-x-utc"), "nightly 2026-11-26 scheduled"),
        ("nightly", NightlyRequest(tasks=["mood", "topic"]), "nightly 2026-11-26 mood, topic"),
        ("nightly", NightlyRequest(tasks=list("abc")), "nightly 2026-11-26 a, b, c"),
        ("nightly", NightlyRequest(tasks=[]), "nightly 2026-11-26 0 tasks"),
        ("nightly", NightlyRequest(tasks=list("abcd")), "nightly 2026-11-26 4 tasks"),
        ("promote", PromoteRequest(task="mood", version=3, reason="good"), "promote 2026-11-26 mood@3"),
        ("rollback", RollbackRequest(task="mood", reason="bad"), "rollback 2026-11-26 mood"),
        ("rollback", RollbackRequest(task="mood", reason="bad", to=2), "rollback 2026-11-26 mood@2"),
        ("reconcile", ReconcileRequest(), "reconcile 2026-11-26 all"),
    ],
)
def test_a_run_is_named_after_what_it_does_and_the_day(flow: str, request_: Record, name: str) -> None:
    assert name_run(flow, request_.to_json(), AT) == name


def test_a_run_has_one_key_per_tasks_data_and_day() -> None:
    key = key_run("nightly", {"mood": "a", "topic": "b"}, AT)
    assert key == key_run("nightly", {"topic": "b", "mood": "a"}, AT.replace(hour=23))
    others = [
        key_run("tune", {"mood": "a", "topic": "b"}, AT),
        key_run("nightly", {"mood": "a"}, AT),
        key_run("nightly", {"mood": "a", "topic": "c"}, AT),
        key_run("nightly", {"mood": "a", "topic": "b"}, AT.replace(day=27)),
    ]
    assert len({key, *others}) == 5


@pytest.mark.parametrize(
    ("request_", "tasks"),
    [
        (PromoteRequest(task="mood", version=3, reason="good"), ["mood"]),
        (NightlyRequest(tasks=["mood", "topic"]), ["mood", "topic"]),
        (NightlyRequest(), []),
        (ReconcileRequest(), []),
    ],
)
def test_a_run_is_tagged_with_the_tasks_that_its_request_names(request_: Record, tasks: list[str]) -> None:
    assert name_tasks(request_.to_json()) == tasks


DECISION = {"task": "mood", "version": 1, "actor": "ann", "reason": "why"}


@pytest.mark.parametrize("field", ["actor", "reason"])
@pytest.mark.parametrize("request_kind", [ApproveRequest, RejectRequest])
def test_the_forms_of_people_ask_who_decides_and_why(request_kind: type[Record], field: str) -> None:
    read = {"verdict": "a" * 12} if request_kind is ApproveRequest else {}
    request_kind.model_validate(DECISION | read)
    with pytest.raises(ValidationError, match=field):
        request_kind.model_validate(DECISION | read | {field: ""})


@pytest.mark.parametrize("verdict", ["a" * 11, "A" * 12, "a" * 65, ""])
def test_the_form_of_an_approval_takes_enough_digits_to_name_one_verdict(verdict: str) -> None:
    with pytest.raises(ValidationError, match="verdict"):
        ApproveRequest.model_validate(DECISION | {"verdict": verdict})


@pytest.mark.parametrize(
    "request_kind", [NightlyRequest, PromoteRequest, ApproveRequest, RejectRequest, RollbackRequest]
)
def test_a_name_is_bounded(request_kind: type[Record]) -> None:
    """Whoever approves later waited for minutes while a name of a megabyte was compared with theirs."""
    given = {"task": "a", "version": 1, "reason": "r", "verdict": "0" * 12, "to": None, "tasks": ["a"]}
    known = {name: value for name, value in given.items() if name in request_kind.model_fields}
    request_kind.model_validate(known | {"actor": "x" * 200})
    with pytest.raises(ValidationError, match="at most 200 characters"):
        request_kind.model_validate(known | {"actor": "x" * 201})
