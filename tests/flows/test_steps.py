"""What a stage's error becomes in Prefect: the flow's own, retried if time may help, and never with a row's text."""

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect import __version__, flow
from prefect.states import Failed

from flows.steps import DELAYS, LEFT, _is_transient, report_suspended, run_plainly, step
from ptpipeline.errors import DataError, Overtaken, PtpError, ServiceUnavailable
from registry.ledger.database import AWAY_SECONDS
from registry.ledger.gang import GangLease
from registry.ledger.ledger import Ledger
from tests.flows.engine import running_flows
from tests.flows.server.test_prefect import Prefect, listening


@pytest.mark.parametrize(
    ("error", "again"),
    [(ServiceUnavailable("away"), True), (DataError("no rows"), False), (ValueError("a defect"), False)],
)
def test_only_what_may_pass_by_itself_is_tried_again(error: Exception, again: bool) -> None:
    assert _is_transient(None, None, Failed(data=error)) == again  # type: ignore[arg-type]


def test_what_is_between_the_steps_of_a_run_has_the_patience_of_a_step() -> None:
    assert sum(DELAYS) == pytest.approx(AWAY_SECONDS, rel=0.01)


@pytest.mark.parametrize("error", [ServiceUnavailable("away"), DataError("no rows")])
def test_an_error_of_ours_stays_what_it_is(error: PtpError) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(PtpError) as raised:
        run_plainly(fail)
    assert raised.value is error


def test_a_defect_is_told_without_its_message_which_prefect_would_keep() -> None:
    def fail() -> None:
        raise ValueError("a secret text")

    with pytest.raises(Exception, match="ValueError") as raised:
        run_plainly(fail)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_a_result_is_handed_on() -> None:
    assert run_plainly(lambda: 7) == 7


@pytest.mark.parametrize(("state", "told"), [("PAUSED", [LEFT]), ("COMPLETED", []), ("CRASHED", [])])
def test_a_suspended_run_tells_that_its_process_has_ended(state: str, told: list[str]) -> None:
    routes = {"GET /flow_runs/r": lambda _: (200, {"state_type": state}), "POST /events": lambda _: (204, b"")}
    with listening(Prefect(routes)) as prefect:
        report_suspended(prefect.url, "r", "d")
    assert [event["event"] for [event] in prefect.bodies("POST /events")] == told


def test_a_run_whose_server_is_gone_ends_without_a_word() -> None:
    with listening(Prefect({})) as prefect:
        report_suspended(prefect.url, "r", "d")


# ---------------------------------------------------------------- in Prefect's own engine


class Engine(Prefect):
    """Answers what Prefect's engine asks about one flow run, and takes every state of it."""

    def __init__(self) -> None:
        known = {"GET /admin/version": __version__, "POST /flows/": {"id": str(uuid.uuid4()), "name": "gang"}}
        super().__init__({what: lambda _, told=told: (200, told) for what, told in known.items()})
        self._run: dict[str, Any] = {"id": str(uuid.uuid4()), "flow_id": str(uuid.uuid4()), "name": "mood"}

    def answer(self, what: str, body: Any) -> tuple[int, Any]:
        if what.endswith("/set_state") or what == "POST /flow_runs/":
            self._run["state"] = body["state"] | {"id": str(uuid.uuid4()), "timestamp": datetime.now(UTC).isoformat()}
            taken = {"state": self._run["state"], "status": "ACCEPT", "details": {}}
            return 201, taken if what.endswith("/set_state") else self._run
        return (200, self._run) if what.startswith("GET /flow_runs/") else super().answer(what, body)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[None]:
    """Prefect's engine runs flows in this process, and has no server but a small one."""
    with listening(Engine()) as prefect, running_flows(prefect.url, tmp_path):
        yield


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("overtaken", [False, True])
def test_a_step_of_a_run_that_stood_still_writes_nothing_once_another_run_has_its_tasks(
    tmp_path: Path, overtaken: bool
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger, successor = Ledger(url), GangLease(Ledger(url).database, ["task mood"], 60.0)
    lease, written = GangLease(ledger.database, ["task mood"], 0.1), list[str]()

    def train() -> None:
        time.sleep(0.2)  # for so long it stands still
        if overtaken:
            successor.take()
        with ledger.database.writing():
            written.append("published")

    @flow(name="gang")
    def gang() -> None:
        lease.take()
        with ledger.database.fenced(lease.keep):
            step("train mood", train)

    if overtaken:
        with pytest.raises(Overtaken, match=r"another one .* took its work over; this one stops"):
            gang()
    else:
        gang()
    assert written == ([] if overtaken else ["published"])
