"""What a stage's error becomes in Prefect: the flow's own, retried if time may help, and never with a row's text."""

import pytest
from prefect.states import Failed

from flows.steps import LEFT, _is_transient, report_suspended, run_plainly
from ptpipeline.errors import DataError, PtpError, ServiceUnavailable
from tests.flows.server.test_prefect import Prefect, listening


@pytest.mark.parametrize(
    ("error", "again"),
    [(ServiceUnavailable("away"), True), (DataError("no rows"), False), (ValueError("a defect"), False)],
)
def test_only_what_may_pass_by_itself_is_tried_again(error: Exception, again: bool) -> None:
    assert _is_transient(None, None, Failed(data=error)) == again  # type: ignore[arg-type]


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
