"""The chain of steps as Prefect runs it: retries, isolation of failures, the final state."""

from collections.abc import Iterator

import pytest
from prefect import flow
from prefect.artifacts import Artifact

from benchmarks.fixtures.prompts import a_request, a_task
from flows.night import build_table, end, show_verdict
from flows.stages.chain import Night, isolate
from flows.stages.outcome import Outcome
from flows.steps import step
from ptpipeline.errors import DataError, ServiceUnavailable
from ptpipeline.records.reports import PairedDifference
from ptpipeline.task.folder import find_task
from tests.e2e.conftest import Project
from tests.flows.engine import running_flows

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module", autouse=True)
def server(project: Project) -> Iterator[None]:
    with running_flows(project.prefect, project.home / "prefect"):
        yield


def test_transient_errors_are_retried() -> None:
    tries: list[int] = []

    def work() -> int:
        tries.append(1)
        if len(tries) < 2:
            raise ServiceUnavailable("storage does not answer")
        return len(tries)

    assert flow(lambda: step("ingest one", work))() == 2


def test_terminal_errors_are_not_retried() -> None:
    tries: list[int] = []

    def work() -> int:
        tries.append(1)
        raise DataError("column label is missing")

    with pytest.raises(DataError, match="column label is missing"):
        flow(lambda: step("ingest one", work))()
    assert len(tries) == 1


def test_a_defect_is_told_by_its_place_without_its_message(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    night, tasks = Night({}, {}), [find_task(project.folder / "tasks", "fruit")]

    def work() -> int:
        raise KeyError("the text of a row")

    def run() -> None:
        with isolate(night, tasks):
            step("ingest fruit", work)

    flow(run)()
    assert night.errors["fruit"].startswith("unexpected KeyError at tests/e2e/test_steps.py:")
    assert "unexpected KeyError" in caplog.text
    assert "the text of a row" not in night.errors["fruit"] + caplog.text


def test_an_error_fails_the_run_and_names_the_task() -> None:
    state = flow(lambda: end(Night({}, {"one": "no rows"}), "nightly"))(return_state=True)
    assert state.is_failed()
    assert state.message == "1 of 1 tasks failed: one: no rows"


def test_failed_tasks_stand_in_the_table_with_their_reason() -> None:
    assert build_table(Night({}, {"one": "no rows"})) == [{"task": "one", "status": "failed", "reason": "no rows"}]


def test_a_verdict_is_an_artifact_of_the_run() -> None:
    pair = PairedDifference(
        metric="accuracy", difference=0.1, lower=0.0, upper=0.2, confidence=0.95, rows=20, dropped=0
    )
    verdict = a_request(a_task(), champion="c" * 64).verdict
    assert verdict is not None
    outcome = Outcome(
        task="mood-2",
        metric="accuracy",
        status="promoted",
        zero_shot=0.5,
        candidate=0.9,
        champion=0.8,
        delta=0.1,
        lower=0.0,
        upper=0.2,
        verdict="passed",
        version=7,
        bytes=9,
        reason="",
        page=None,
    )
    flow(lambda: show_verdict(outcome, verdict.model_copy(update={"comparison": pair})))()
    found = Artifact.get("verdict-mood-2")
    assert getattr(found, "type", None) == "markdown"
    assert str(getattr(found, "data", "")).startswith("# mood-2@7: promoted")
