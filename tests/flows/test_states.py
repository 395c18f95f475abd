"""How a run over several tasks ends in Prefect."""

import httpx
import pytest

from flows.stages.chain import Night
from flows.stages.outcome import Outcome
from flows.states import end_state, list_tags, outlast
from tests.flows.test_night import OUTCOME


def answering(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1:9/api/artifacts/")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


@pytest.mark.parametrize("away", [httpx.ConnectError("refused"), httpx.ReadTimeout("late"), answering(500)])
def test_a_server_that_was_away_for_a_while_is_told_later(away: Exception) -> None:
    left = [away, away]

    def tell() -> None:
        if left:
            raise left.pop()

    outlast("the table", tell, patience=60.0)
    assert left == []


def test_a_server_that_stays_away_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def tell() -> None:
        raise httpx.ConnectError("refused")

    outlast("the table", tell, patience=0.1)
    assert "Prefect does not show the table: its server was away (ConnectError)" in caplog.text


def test_what_the_server_refuses_is_an_error_at_once() -> None:
    tries: list[int] = []

    def tell() -> None:
        tries.append(1)
        raise answering(422)

    with pytest.raises(httpx.HTTPStatusError):
        outlast("the table", tell)
    assert len(tries) == 1


def a_night(**status: str) -> Night:
    return Night({task: OUTCOME.model_copy(update={"task": task, "status": told}) for task, told in status.items()}, {})


@pytest.mark.parametrize(
    ("status", "type_", "name"),
    [
        ("promoted", "COMPLETED", "Completed"),
        ("unchanged", "COMPLETED", "Completed"),
        ("rolled back", "COMPLETED", "Completed"),
        ("awaiting approval", "COMPLETED", "Awaiting approval"),
        ("no gain", "FAILED", "Gate failed"),
        ("gate failed", "FAILED", "Gate failed"),
    ],
)
def test_the_state_names_what_a_person_has_to_know(status: str, type_: str, name: str) -> None:
    state = end_state(a_night(mood=status, topic="unchanged"))
    assert (state.type.value, state.name) == (type_, name)
    assert state.message == f"mood: {status}; topic: unchanged"


def test_an_error_outweighs_a_refused_candidate_and_that_an_approval() -> None:
    night = a_night(mood="gate failed", topic="awaiting approval")
    assert end_state(night).name == "Gate failed"
    night.errors["tone"] = "no rows"
    assert (end_state(night).name, end_state(night).message) == ("Failed", "1 of 3 tasks failed: tone: no rows")


def test_a_run_is_tagged_with_what_it_worked_on_and_came_to() -> None:
    night = a_night(mood="gate failed", topic="promoted", same="unchanged")
    night.errors["tone"] = "no rows"
    assert list_tags(night) == {"task:mood", "task:topic", "task:tone", "verdict:failed", "verdict:passed"}
    assert list_tags(a_night(mood="promoted")) == {"task:mood", "verdict:passed"}


def test_of_many_tasks_the_message_counts_those_of_one_status() -> None:
    night = a_night(**{f"task{number}": "unchanged" for number in range(9)}, mood="promoted")
    assert end_state(night).message == "1 promoted: mood; 9 unchanged"
    names = [f"task{number}" for number in range(8)]
    assert end_state(a_night(**dict.fromkeys(names, "unchanged"))).message.startswith("task0: unchanged; task1:")
    night = a_night(**dict.fromkeys(names, "unchanged"), mood="promoted")
    assert end_state(night).message == f"1 promoted: mood; 8 unchanged: {', '.join(names)}"


def test_the_table_rounds_figures_and_leaves_out_what_is_unknown() -> None:
    from flows.night import build_table

    outcome = OUTCOME.model_copy(update={"candidate": 0.123456, "seconds": 12.345, "page": None})
    [row] = build_table(Night({"mood": outcome}, {}))
    assert (row["candidate"], row["seconds"]) == (0.1235, 12.3)
    assert "page" not in row
    assert list(row)[:3] == ["task", "status", "version"]


def test_outcome_statuses_decide_the_exit_code_of_run() -> None:
    refused = {status for status in ("promoted", "unchanged", "rolled back", "no gain", "gate failed") if _is(status)}
    assert refused == {"no gain", "gate failed"}


def _is(status: str) -> bool:
    outcome: Outcome = OUTCOME.model_copy(update={"status": status})
    return outcome.refused
