"""What the ledger tells of a night that did not come to its tasks; the flow runs here without a Prefect server."""

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.nightly import nightly
from flows.requests import NightlyRequest
from flows.turn import NIGHT
from ptpipeline.errors import TrainingError
from registry.ledger.gang import GangLease
from registry.ledger.ledger import Ledger
from registry.ledger.nights import RecordedNight, begin_night, list_nights


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    settings = {
        "PTP_HOME": tmp_path,
        "PTP_TASKS": tmp_path,
        "PTP_LEDGER": f"sqlite:///{tmp_path}/ledger.db",
        "PTP_STORE": f"file://{tmp_path}/store",
        "PTP_NIGHT_OVERLAP": "skip",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    return Ledger(settings["PTP_LEDGER"])


def run(request: NightlyRequest) -> object:
    with temporary_settings({PREFECT_API_URL: None}):
        return nightly.fn(request)


def test_a_night_that_ends_by_an_error_ends_in_the_ledger(ledger: Ledger) -> None:
    with pytest.raises(TrainingError, match="the worker of this run died 9 times"):
        run(NightlyRequest(resumes=9, night="first"))
    [night] = list_nights(ledger, 9)
    assert (night.id, night.state, night.ended is None) == ("first", "Failed", False)


def test_a_twin_that_is_skipped_leaves_the_row_to_the_night_that_works(ledger: Ledger) -> None:
    begin_night(ledger, RecordedNight(id="first", flow="nightly", cause="me", page=None, started="2026-11-26T00:00:00"))
    working = GangLease(ledger.database, [NIGHT], 60)
    working.take()
    with working.beating():
        run(NightlyRequest(resumes=1, night="first"))
    [night] = list_nights(ledger, 9)
    assert (night.id, night.ended, night.cause) == ("first", None, "me")
