"""What verbs end with, and what they ask of servers: against a small server that answers as Prefect's API does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.cli.app import os_user
from flows.server import trigger
from tests.flows.cli.test_cli import Done, environment_of, error_of, ptp
from tests.flows.server.test_prefect import Answer, Prefect, listening
from tests.flows.stages.test_approve import FILE
from tests.tiny import sentences, write_csv


class Flow(Prefect):
    """One deployment, `nightly`, whose run has ended in that state, and logged in between."""

    def __init__(self, state: str = "COMPLETED", name: str = "Completed") -> None:
        super().__init__({})
        self.state = {"state_type": state, "state": {"name": name, "message": "what it came to"}}
        self.lines: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []

    def answer(self, what: str, body: Any) -> Answer:
        self.asked.append((what, body))
        answers: dict[str, Answer] = {
            "GET /deployments/name/nightly/ptp-nightly": (200, {"id": "d"}),
            "POST /deployments/d/create_flow_run": (201, {"id": "r"}),
            "GET /flow_runs/r": (200, self.state),
            "POST /logs/filter": (200, self.lines),
            "POST /artifacts/filter": (200, [{"data": json.dumps(self.rows)}] if self.rows else []),
        }
        return answers.get(what, (404, {}))

    def started(self) -> dict[str, Any]:
        [body] = self.bodies("POST /deployments/d/create_flow_run")
        assert isinstance(body, dict)
        return body


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger, "_POLL_SECONDS", 0.01)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    (tmp_path / "tasks").mkdir()
    return environment_of(tmp_path)


def run(environment: dict[str, str], flow: Flow, *options: str) -> Done:
    with listening(flow) as prefect:
        return ptp(environment | {"PTP_PREFECT": prefect.url}, "trigger", "nightly", *options)


@pytest.mark.parametrize(
    ("state", "name", "code"),
    [
        ("COMPLETED", "Completed", 0),
        ("COMPLETED", "Awaiting approval", 0),
        ("FAILED", "Gate failed", 4),
        ("FAILED", "Failed", 1),
        ("CRASHED", "Crashed", 1),
        ("CANCELLED", "Cancelled", 1),
    ],
)
def test_trigger_ends_as_the_run_that_it_follows(environment: dict[str, str], state: str, name: str, code: int) -> None:
    done = run(environment, Flow(state, name))
    assert done.returncode == code
    if code == 1:
        assert f"flow run r ended {state}: what it came to" in error_of(done, 1)
    elif code == 0:
        assert done.stdout == "what it came to\n"


def test_the_rows_of_a_run_are_printed_and_its_lines_if_they_are_ours_or_warnings(environment: dict[str, str]) -> None:
    flow = Flow()
    flow.rows = [{"task": "mood", "status": "promoted"}]
    for number, (logger, level) in enumerate(
        [("ptpipeline.stages", 20), ("registry.ledger", 20), ("prefect.flow_runs", 20), ("httpx", 30), ("httpx", 20)]
    ):
        at = f"2026-11-26T00:00:0{number}+00:00"
        flow.lines.append(
            {"id": number, "timestamp": at, "name": logger, "level": level, "message": f"{logger} {level}"}
        )
    done = run(environment, flow)
    told = [line[9:] for line in done.stderr.splitlines()[1:]]
    assert told == ["ptpipeline.stages 20", "registry.ledger 20", "httpx 30"]
    assert "promoted" in done.stdout


def test_a_night_that_a_person_starts_is_theirs_and_need_not_be_followed(environment: dict[str, str]) -> None:
    flow = Flow("FAILED", "Failed")
    done = run(environment, flow, "--no-wait", "--reason", "new data")
    assert (done.returncode, done.stderr) == (0, "flow run r\n")
    assert flow.started()["parameters"]["request"] == {
        **flow.started()["parameters"]["request"],
        "actor": os_user(),
        "reason": "new data",
        "tasks": None,
    }
    assert "GET /flow_runs/r" not in [asked for asked, _ in flow.asked]


def test_once_a_day_for_the_same_rows_is_the_same_run(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks" / "mood.yaml").write_text(FILE)
    write_csv(tmp_path / "rows.csv", sentences(9))
    keys = []
    for options in (["--once"], ["--once"], []):
        run(environment, flow := Flow(), "--no-wait", "--task", "mood", *options)
        keys.append(flow.started()["idempotency_key"])
        assert flow.started()["tags"] == ["task:mood"]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0].startswith("nightly 20")


# ---------------------------------------------------------------- bootstrap


def test_gpus_are_for_jobs_of_kubernetes_alone(environment: dict[str, str]) -> None:
    for pool in ("process", "docker"):
        done = ptp(environment, "bootstrap", "--pool", pool, "--gpus", "1", "--dry-run")
        assert (done.returncode, "only a job of Kubernetes is given GPUs" in " ".join(done.stderr.split())) == (2, True)


def test_what_cannot_be_made_is_exit_code_1_and_a_dry_run_makes_nothing(environment: dict[str, str]) -> None:
    prefect = Prefect({"GET /health": lambda _: (200, True), "POST /deployments/filter": lambda _: (200, [])})
    with listening(prefect):
        done = ptp(environment | {"PTP_PREFECT": prefect.url}, "bootstrap", "--dry-run", "--json")
    states = {row["piece"]: row["state"] for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1
    assert {states[name] for name in ("object store", "ledger", "MLflow")} == {"cannot"}
    assert states["work pool ptp (process)"] == "would be made"
    assert [asked for asked, _ in prefect.asked if asked.startswith("POST /work_pools")] == []
