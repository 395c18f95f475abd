"""A worker whose clock is not that of the servers: what is decided between machines does not go by it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.clock import check_clock
from flows.requests import TuneRequest
from flows.server.schedules import list_due_runs
from flows.tune import tune
from ptpipeline.errors import SettingsError
from tests.flows.server.test_prefect import Prefect, listening
from tests.http_server import Quiet, serve

CHECKOUT = Path(__file__).parents[2]
# Who may read this machine's clock, and why no other machine minds. Time that passes is `time.monotonic`'s.
MAY_READ = {
    "flows/chronicle.py": "the beginning of a night that no ledger noted, until the end does",
    "flows/clock.py": "it holds the clock against the server's",
    "flows/cli/work.py": "the day in the key of a person's own `ptp trigger --once`",
    "flows/local/certificate.py": "the local stack is one machine",
    "flows/local/guard.py": "the local stack is one machine",
    "flows/on_demand/serving.py": "the age of a server's report, for people",
    "flows/on_demand/silence.py": "it dates files, and is held against the ledger's",
    "flows/server/trigger.py": "the name of a run",
    "flows/server/webhook.py": "the age of a signature, which only wakes",
    "flows/stages/promote.py": "the date of a release",
    "flows/states.py": "the name of a run",
    "flows/steps.py": "the last event of a suspended run, dated like the heartbeats before it",
    "registry/garbage/collect.py": "it is held against the store's and the ledger's",
    "registry/garbage/roots.py": "ages, once that agrees",
    "registry/garbage/signatures.py": "ages, once that agrees",
    "registry/ledger/clock.py": "the machine of a SQLite file is this one",
    "registry/mlflow/tracking.py": "the name of a run",
    "registry/mlflow/write.py": "points of a curve",
    "registry/repair/rebuild.py": "a date of which nothing is known",
    "registry/versions/approval.py": "the date of a decision; the request's end is the ledger's",
    "registry/versions/mlflow_edit.py": "a date in a sentence",
}
READS = re.compile(r"\b(?:datetime\.now|time\.time|read_clock|now)\(")


def test_each_reader_of_this_machines_clock_is_known() -> None:
    paths = [path for folder in ("flows", "registry") for path in (CHECKOUT / folder).rglob("*.py")]
    reading = {str(path.relative_to(CHECKOUT)) for path in paths if READS.search(path.read_text())}
    assert reading == set(MAY_READ)


@contextmanager
def telling(ahead: timedelta) -> Iterator[str]:
    """The API of a Prefect whose clock is so far ahead; it refuses who has no key, and tells the time all the same."""

    class Refusing(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            self.answer(401)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(datetime.now(UTC) + ahead, usegmt=True)

    with serve(Refusing) as url:
        yield f"{url}/api"


@pytest.mark.parametrize(
    ("minutes", "where"), [(60, "behind"), (-60, "ahead of"), (0.55, "behind"), (-0.55, "ahead of")]
)
def test_a_run_on_a_machine_with_another_clock_is_refused_before_it_begins(minutes: float, where: str) -> None:
    refused = pytest.raises(SettingsError, match=f"clock is [0-9,]+ s {where} that of Prefect's server")
    with telling(timedelta(minutes=minutes)) as url, temporary_settings({PREFECT_API_URL: url}), refused:
        tune.fn(TuneRequest())


@pytest.mark.parametrize("seconds", [29, -29])
def test_a_clock_that_is_some_seconds_off_is_taken(seconds: int) -> None:
    with telling(timedelta(seconds=seconds)) as url, temporary_settings({PREFECT_API_URL: url}):
        check_clock()


@pytest.mark.parametrize("date", ["", "soon"])
def test_a_server_that_does_not_tell_the_time_refuses_nobody(date: str) -> None:
    class Silent(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            self.answer(200)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return date

    with serve(Silent) as url, temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        check_clock()


def test_a_server_that_is_away_refuses_nobody() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        check_clock()


def test_a_night_that_waits_is_known_by_the_servers_clock() -> None:
    """Whoever deploys with a clock that is behind would else lose it with the schedule."""
    asked_for = {"request": {"schedule": "0-2-x-x-x-utc"}}
    late = {"id": "late", "auto_scheduled": True, "estimated_start_time_delta": 600.0, "parameters": asked_for}
    coming = {"id": "coming", "auto_scheduled": True, "estimated_start_time_delta": 0.0, "parameters": {}}
    by_hand = {"id": "by hand", "auto_scheduled": False, "estimated_start_time_delta": 600.0, "parameters": {}}
    with listening(Prefect({"POST /flow_runs/filter": lambda _: (200, [late, by_hand, coming])})) as prefect:
        assert list_due_runs(prefect.url, {"id": "nightly"}) == [late]
        [asked] = prefect.bodies("POST /flow_runs/filter")
        assert "expected_start_time" not in asked["flow_runs"]
