"""What `ptp run` and `ptp trigger` print of outcomes."""

import json

import pytest

from flows.cli.outcomes import print_outcome, print_outcomes
from flows.night import build_table
from flows.stages.chain import Night
from tests.flows.test_night import OUTCOME

LONG = OUTCOME.model_copy(update={"tokens": 12345, "seconds": 12.34, "reason": "gain: +0.1", "task": "a-task"})


def test_the_table_fits_into_a_hundred_columns_and_the_reason_stands_below(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcomes([LONG], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines[:2]) <= 100
    assert lines[1].split()[:4] == ["a-task", "no", "gain", "3"]
    assert "+0.1000 (-0.1000 to +0.3000)" in lines[1]
    assert lines[2:] == ["a-task: gain: +0.1", "  http://127.0.0.1:5000/#/models/mood"]


def test_a_row_of_prefects_table_prints_as_the_outcome_itself(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcomes([LONG], as_json=False)
    direct = capsys.readouterr().out
    print_outcomes(json.loads(json.dumps(build_table(Night({"a-task": LONG}, {})))), as_json=False)
    assert capsys.readouterr().out == direct


@pytest.mark.parametrize(
    ("status", "code"),
    [("no gain", 4), ("gate failed", 4), ("promoted", 0), ("awaiting approval", 0), ("rejected", 0), ("unchanged", 0)],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_a_run_ends_with_4_if_the_gate_refused_its_candidate(
    capsys: pytest.CaptureFixture[str], status: str, code: int, as_json: bool
) -> None:
    assert print_outcome(OUTCOME.model_copy(update={"status": status}), as_json) == code
    assert status in capsys.readouterr().out


def test_a_failed_task_has_a_line_and_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcomes([{"task": "tone", "status": "failed", "reason": "no rows"}], as_json=False)
    assert capsys.readouterr().out.splitlines()[-1] == "tone: no rows"
