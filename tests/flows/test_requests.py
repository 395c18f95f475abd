"""What runs are called in Prefect's lists."""

from datetime import UTC, datetime

import pytest

from flows.requests import NightlyRequest, PromoteRequest, ReconcileRequest, RollbackRequest, key_run, name_run
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
