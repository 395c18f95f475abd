"""What somebody did in Prefect that keeps runs from starting, by a small server that holds it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from flows.server import trigger as following
from flows.server.automations import install_automations
from flows.server.deploy import FLOWS
from flows.server.pauses import explain_wait, list_pauses
from flows.server.trigger import LogLine, follow
from tests.flows.server.test_prefect import Prefect, Run, listening

OPEN = {"is_paused": False, "concurrency_limit": None}
RUN = {"work_pool_name": "ptp", "work_queue_name": "default", "state_type": "SCHEDULED", "state": {"name": "Scheduled"}}


class Held:
    """What the server holds; a test changes it."""

    def __init__(self) -> None:
        self.pool: dict[str, Any] = dict(OPEN)
        self.queues = {name: {"name": name, **OPEN} for name in ("default", "training")}
        self.deployments = {
            flow: {
                "id": flow,
                "name": f"ptp-{flow}",
                "paused": False,
                "work_pool_name": "ptp",
                "schedules": [{"slug": "s", "active": True, "schedule": {"cron": "0 2 * * *"}}]
                if flow == "nightly"
                else [],
            }
            for flow in FLOWS
        }
        self.workers: list[dict[str, Any]] = [{"status": "ONLINE"}]
        self.automations: list[dict[str, Any]] = []
        with listening(Prefect(self.routes())) as prefect:
            install_automations(prefect.url, self.deployments)

    def routes(self) -> dict[str, Callable[[Any], tuple[int, Any]]]:
        def add(body: dict[str, Any]) -> tuple[int, Any]:
            self.automations.append({**copy.deepcopy(body), "id": "a"})
            return 201, {}

        return {
            "GET /work_pools/ptp": lambda _: (200, self.pool) if self.pool else (404, {}),
            "POST /work_pools/ptp/queues/filter": lambda _: (200, list(self.queues.values())),
            "POST /work_pools/ptp/workers/filter": lambda _: (200, self.workers),
            "POST /deployments/filter": lambda _: (200, list(self.deployments.values())),
            "POST /automations/filter": lambda _: (200, self.automations),
            "POST /automations/": add,
        }


Change = Callable[[Held], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: None, []),
        (lambda held: held.pool.update(is_paused=True), ["the work pool ptp is paused"]),
        (lambda held: held.pool.clear(), ["the work pool ptp was removed"]),
        (lambda held: held.pool.update(concurrency_limit=0), ["the work pool ptp has a limit of 0"]),
        (lambda held: held.queues["training"].update(is_paused=True), ["the work queue training of the work pool ptp"]),
        (lambda held: held.deployments["nightly"].update(paused=True), ["the deployment ptp-nightly is paused"]),
        (lambda held: held.deployments["tune"].update(paused=True), []),  # it has no schedule
        (
            lambda held: held.deployments["tune"].update(work_pool_name=None),
            ["the work pool of the deployment ptp-tune"],
        ),
        (
            lambda held: held.deployments["nightly"]["schedules"][0].update(active=False),
            ["the schedule s of ptp-nightly is paused"],
        ),
        (lambda held: held.deployments.pop("nightly"), ["the deployment ptp-nightly was removed"]),
        (lambda held: held.automations.pop(), ["the automation 'ptp: a crashed night goes on' was removed"]),
        (
            lambda held: held.automations[1].update(enabled=False),
            ["the automation 'ptp: a crashed night goes on' is paused"],
        ),
        (lambda held: held.automations.append({"id": "m", "name": "mine", "enabled": False}), []),
    ],
)
def test_what_is_paused_or_removed_is_said(change: Change, said: list[str]) -> None:
    held = Held()
    change(held)
    with listening(Prefect(held.routes())) as prefect:
        found = list_pauses(prefect.url)
    assert [line[: len(start)] for line, start in zip(found, said, strict=True)] == said


@pytest.mark.parametrize(
    ("change", "run", "said"),
    [
        (lambda held: None, {}, None),
        (lambda held: held.pool.update(is_paused=True), {}, "the work pool ptp is paused"),
        (lambda held: held.pool.clear(), {}, "the work pool ptp was removed"),
        (lambda held: None, {"work_pool_name": None}, "then start this run again"),
        (lambda held: held.queues["default"].update(is_paused=True), {}, "the work queue default"),
        (lambda held: held.queues["training"].update(is_paused=True), {}, None),  # the run is in the other
        (
            lambda held: held.queues["default"].update(concurrency_limit=0),
            {},
            "the work queue default of the work pool",
        ),
        (lambda held: held.workers[0].update(status="OFFLINE"), {}, "no worker of the work pool ptp is online"),
        (lambda held: held.workers.clear(), {}, "no worker of the work pool ptp is online"),
        (lambda held: held.pool.update(concurrency_limit=2), {}, "takes at most 2 runs at once"),
        (lambda held: None, {"state": {"name": "AwaitingConcurrencySlot"}}, "the limit of runs of its deployment"),
    ],
)
def test_a_run_that_no_worker_takes_has_a_reason(change: Change, run: dict[str, Any], said: str | None) -> None:
    held = Held()
    change(held)
    with listening(Prefect(held.routes())) as prefect:
        found = explain_wait(prefect.url, {**RUN, **run})
    assert (said in found) if said and found else found is said


def test_who_follows_a_run_that_no_worker_takes_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(following, "_PATIENCE", 0.1)
    held, run = Held(), Run(0, "COMPLETED")

    def look(body: Any) -> tuple[int, Any]:
        return (200, RUN) if held.pool["is_paused"] else run.look(body)

    held.pool["is_paused"] = True
    with listening(Prefect(run.routes() | held.routes() | {"GET /flow_runs/r": look})) as prefect:
        events = follow(prefect.url, "r")
        first = next(events)
        held.pool["is_paused"] = False
        rest = list(events)
    assert isinstance(first, LogLine)
    assert first.message.startswith("waits: the work pool ptp is paused in Prefect")
    assert [line.message for line in rest if isinstance(line, LogLine)] == ["line 0", "line 1", "line 2"]
