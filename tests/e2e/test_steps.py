"""The chain of steps as Prefect runs it: retries, isolation of failures, the final state."""

from collections.abc import Iterator

import pytest
from prefect import flow
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from flows.night import ended, table
from flows.steps import Night, step
from ptpipeline.errors import DataError, ServiceUnavailable
from tests.e2e.conftest import Project

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module", autouse=True)
def server(project: Project) -> Iterator[None]:
    settings = {PREFECT_HOME: project.home / "prefect", PREFECT_API_URL: project.prefect, PREFECT_LOGGING_TO_API_ENABLED: False}
    with temporary_settings(settings):
        yield
        EventsWorker.drain_all()  # else it goes on trying after the server is down


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


def test_an_error_fails_the_run_and_names_the_task() -> None:
    state = flow(lambda: ended(Night({}, {"one": "no rows"}), "nightly"))(return_state=True)
    assert state.is_failed()
    assert state.message == "1 of 1 tasks failed: one: no rows"


def test_failed_tasks_stand_in_the_table_with_their_reason() -> None:
    assert table(Night({}, {"one": "no rows"})) == [{"task": "one", "status": "failed", "reason": "no rows"}]
